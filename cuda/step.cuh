// What all kernels of a recurrence share: their arguments, and how one element of u_t is read. README.md
// derives the formulas.
#pragma once

#include "elements.cuh"

// A product as passes over a vector, the lowest digit first; see stages.cuh.
constexpr int kMaxStages = 32, kMaxProducts = 4;
struct Stage {
  int p, q, bits, offset;
};
struct Plan {
  int count, columns;  // passes, and the size of the vector multiplied
  Stage stages[kMaxStages];
};

enum Form { kDense, kFeatures, kTokens };  // of the input: u itself, or what a weight maps to u

// Arguments of every kernel, filled in by kron_plugin/ops/recurrence/cuda.py and ops/kron/cuda.py. Pointers
// that do not apply are null. `real` below is the type of computation. S parts of the state, K products,
// W = C N.
struct Call {
  int64 steps, batch, size;   // T, B, N; T x B rows for a product without recurrence
  int64 first;                // the step of the sequences with which these begin, for `lengths`
  int64 initial_rows;         // gradient of a product: how many rows of its input are in `initial`
  int64 inputs, symbols;      // inputs: 0 if x is u, I for I features, -1 for tokens below `symbols`
  int64 activation;           // enum Activation
  int64 adjoint;              // butterfly: whether W^H is meant
  int64 capacity, cached;     // stages: see Stages
  const void* x;              // stored (T, B, K W) or (T, B, I), or int64 (T, B)
  const void* weight;         // stored (I, K W)
  const void* bias;           // real; the cell defines its shape
  const void* factors;        // real, C numbers per entry, of all products; stages: of the adjoints in
                              // the backward sweep
  const void* initial;        // real (S, B, W)
  const int64* lengths;       // (B)
  void* outputs;              // stored (T, B, W): h after each step; the results of a product
  void* kept;                 // real (T, S, B, W): the state before each step
  void* last;                 // real (S, B, W)
  const void* recurrent;      // real (T, B, K W): W_k h before each step
  const void* d_outputs;      // stored (T, B, W)
  const void* d_last;         // real (S, B, W)
  void* delta;                // (T, B, K W): the gradient of W_k h; butterfly: stored, stages: real
  void* d_input;              // as delta: the gradient of u_t, if that is another one
  void* d_bias;               // real, one per sequence, still to be summed
  void* d_initial;            // real (S, B, W)
  void* d_factors;            // butterfly: real (blocks, F, 2, 2, C), still to be summed
  void* workspace;            // stages: see Stages
  Plan plans[kMaxProducts];   // stages
};

// u_t at n of sequence b, whose rows are C * size numbers. A token that is not a symbol makes u_t and all
// later states NaN: the error is visible, and the device is not stopped for a check.
template <class Stored, class real, int C>
__device__ inline void read_input(const Call& call, int64 size, int64 t, int64 b, int64 n,
                                  Number<real, C>& u) {
  const int64 row = t * call.batch + b, width = C * size;
  const Stored* x = static_cast<const Stored*>(call.x);
  const Stored* weight = static_cast<const Stored*>(call.weight);
  if (call.inputs == 0) return load_elements<1>(x + row * width, size, n, &u);
  const int64 token = call.inputs < 0 ? static_cast<const int64*>(call.x)[row] : 0;
  if (call.inputs < 0 && token >= 0 && token < call.symbols)
    return load_elements<1>(weight + token * width, size, n, &u);
  for (int c = 0; c < C; ++c) u.v[c] = call.inputs < 0 ? real(nan("")) : real(0);
  for (int64 i = 0; i < call.inputs; ++i) {
    Number<real, C> w;
    load_elements<1>(weight + i * width, size, n, &w);
    const real feature = widen(x[row * call.inputs + i]);
    for (int c = 0; c < C; ++c) u.v[c] += feature * w.v[c];
  }
}

// Entry j of unit n's bias, which has `parts` parts.
template <class real, int C>
__device__ inline Number<real, C> read_bias(const Call& call, int parts, int j, int64 n) {
  Number<real, C> bias = {};
  const real* from = static_cast<const real*>(call.bias);
  for (int c = 0; c < parts; ++c) bias.v[c] = from[(j * parts + c) * call.size + n];
  return bias;
}
// The place of number j (of `count`) of sequence b and unit n in the bias's gradient.
template <class real>
__device__ inline real* bias_gradient(const Call& call, int count, int j, int64 b, int64 n) {
  return static_cast<real*>(call.d_bias) + (b * count + j) * call.size + n;
}

// The gradients of a step at one unit: of the state before it, without the way through the products; of W_k h;
// of u, if that is another one (`kSplits`); and of the bias, from a cell with `kFromOutput`.
template <class Element, class Cell>
struct Derivative {
  Element state[Cell::kStates], delta[Cell::kProducts], input[Cell::kProducts], bias;
};

template <class real>
__device__ inline real sigmoid(real z) {
  return 1 / (1 + exp(-z));
}

// The sequence of a thread. Threads beyond the batch run along, for the barriers, and write nothing.
struct Sequence {
  int64 b;
  bool real_one;
  __device__ explicit Sequence(int64 batch) {
    b = int64(blockIdx.x) * blockDim.y + threadIdx.y;
    real_one = b < batch;
    b = real_one ? b : batch - 1;
  }
};

// Shared memory, as much as the launch asked for.
template <class T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes);
}
