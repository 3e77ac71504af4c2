// What every kernel of the recurrence h_t = sigma(W h_{t-1} + u_t) shares: its arguments, sigma with its
// derivative, and how one element of u_t is read. README.md derives the formulas.
#pragma once

#include "elements.cuh"

// A product as passes over a vector, the lowest digit first; see stages.cuh.
constexpr int kMaxStages = 32;
struct Stage {
  int p, q, bits, offset;
};
struct Plan {
  int count, columns;  // passes, and the size of the vector multiplied
  Stage stages[kMaxStages];
};

enum Activation { kModrelu, kTanh, kIdentity };
enum Form { kDense, kFeatures, kTokens };  // of the input: u itself, or what a weight turns into u

// Arguments of every kernel, filled in by kron_plugin/ops/kron_rnn/cuda.py. Pointers that do not apply
// are null. `real` below is what the stored type is computed with.
struct Call {
  int64 steps, batch, size;   // T, B, N; T x B rows for a product without recurrence
  int64 first;                // the step of the sequences that the first of these is, for `lengths`; for the
                              // gradient of a product, how many rows of its input are h0's
  int64 inputs, symbols;      // inputs: 0 if x is u, I for I features, -1 for tokens below `symbols`
  int64 activation;           // enum Activation
  int64 adjoint;              // pairs: whether W^H is meant
  int64 capacity, cached;     // stages: see Stages
  const void* x;              // stored (T, B, C N) or (T, B, I), or int64 (T, B)
  const void* weight;         // stored (I, C N)
  const void* bias;           // real (N) for modReLU, (C N) otherwise
  const void* factors;        // real, C numbers an entry; stages: of W^H in the sweep back
  const void* h0;             // real (B, C N)
  const int64* lengths;       // (B)
  void* states;               // stored (T, B, C N)
  void* last;                 // real (B, C N)
  const void* d_states;       // stored (T, B, C N)
  const void* d_last;         // real (B, C N)
  void* delta;                // stored (T, B, C N): dL/dz_t = dL/du_t
  void* d_bias;               // real (B, N) or (B, C N), still to be summed over b
  void* d_h0;                 // real (B, C N)
  void* d_factors;            // pairs: real (blocks, F, 2, 2, C), still to be summed
  void* workspace;            // stages: see Stages
  Plan plan;                  // stages
};

// u_t of element n of sequence b, whose rows are C * size numbers. A token that is no symbol makes it
// NaN, and with it the state from there on: what is wrong stays visible without stopping the device.
template <class Stored, class AnyCall, class real, int C>
__device__ inline void read_input(const AnyCall& call, int64 size, int64 t, int64 b, int64 n,
                                  Cell<real, C>& u) {
  const int64 row = t * call.batch + b, width = C * size;
  const Stored* x = static_cast<const Stored*>(call.x);
  const Stored* weight = static_cast<const Stored*>(call.weight);
  if (call.inputs == 0) return load_cells<1>(x + row * width, size, n, &u);
  const int64 token = call.inputs < 0 ? static_cast<const int64*>(call.x)[row] : 0;
  if (call.inputs < 0 && token >= 0 && token < call.symbols)
    return load_cells<1>(weight + token * width, size, n, &u);
  for (int c = 0; c < C; ++c) u.v[c] = call.inputs < 0 ? real(nan("")) : real(0);
  for (int64 i = 0; i < call.inputs; ++i) {
    Cell<real, C> w;
    load_cells<1>(weight + i * width, size, n, &w);
    const real feature = widen(x[row * call.inputs + i]);
    for (int c = 0; c < C; ++c) u.v[c] += feature * w.v[c];
  }
}

// The bias of element n: one number for modReLU, C otherwise.
template <class real, int C>
__device__ inline Cell<real, C> read_bias(const Call& call, int64 n) {
  Cell<real, C> bias = {};
  const real* from = static_cast<const real*>(call.bias);
  for (int c = 0; c < (call.activation == kModrelu ? 1 : C); ++c) bias.v[c] = from[c * call.size + n];
  return bias;
}
template <class real, int C>
__device__ inline void store_bias_gradient(const Call& call, int64 b, int64 n, const Cell<real, C>& d) {
  const int parts = call.activation == kModrelu ? 1 : C;
  real* to = static_cast<real*>(call.d_bias) + b * parts * call.size;
  for (int c = 0; c < parts; ++c) to[c * call.size + n] = d.v[c];
}

template <int A, class real, int C>
__device__ inline void activate(Cell<real, C>& z, const Cell<real, C>& bias) {
  if constexpr (A == kModrelu) {
    const real square = dot(z, z);
    const Root<real> modulus = root_of(square);
    real moved = modulus.root + bias.v[0];
    moved = moved < 0 ? 0 : moved;  // a NaN stays one
    const real scale = square == 0 ? 0 : moved * modulus.inverse;
    for (int c = 0; c < C; ++c) z.v[c] *= scale;
  } else {
    add(z, bias);
    if constexpr (A == kTanh) z.v[0] = tanh(z.v[0]);
  }
}

// The derivative of sigma at z_t, told by h_t alone, so that it is there before gamma = dL/dh_t is:
//   delta = dL/dz_t = stretch gamma - across Re(gamma conj direction) direction
template <class real, int C>
struct Slope {
  real stretch, across;
  Cell<real, C> direction;
};
template <int A, class real, int C>
__device__ inline Slope<real, C> slope_at(const Cell<real, C>& h, const Cell<real, C>& bias) {
  Slope<real, C> slope = {1, 0, {}};
  if constexpr (A == kTanh) slope.stretch = 1 - h.v[0] * h.v[0];
  if constexpr (A == kModrelu && C == 1) {  // in one dimension all of gamma is along the direction
    slope.stretch = h.v[0] == 0 ? 0 : 1;
    slope.direction.v[0] = h.v[0] < 0 ? -slope.stretch : slope.stretch;
  } else if constexpr (A == kModrelu) {
    constexpr real kLeast = real(sizeof(real) == 4 ? 1.2e-38 : 2.3e-308);  // the least normal number
    constexpr real kDigit = real(sizeof(real) == 4 ? 6e-8 : 1.1e-16);
    constexpr real kMost = real(sizeof(real) == 4 ? 3.4e38 : 1.7e308);
    // All is computed and then chosen from: branches would keep a thread's elements apart.
    const real square = dot(h, h);
    const Root<real> root = root_of(square);
    const real modulus = square == 0 ? 0 : root.root;
    const real moved = bias.v[0] < -kMost ? -kMost : bias.v[0];  // -inf times nothing is no number
    real before = modulus - moved;  // |z|, which rounding may take to 0 but not below
    before = before < kDigit * modulus ? kDigit * modulus : before;
    const bool dead = modulus * before < kLeast;
    const real inverted = inverse(before), per_before = dead ? 0 : inverted;
    slope.stretch = modulus * per_before;
    slope.across = moved * per_before;
    for (int c = 0; c < C; ++c) slope.direction.v[c] = dead ? 0 : h.v[c] * root.inverse;
  }
  return slope;
}
// From gamma to delta, in place; adds to the bias gradient.
template <int A, class real, int C>
__device__ inline void descend(Cell<real, C>& gamma, const Slope<real, C>& slope, Cell<real, C>& d_bias) {
  if constexpr (A == kModrelu) {
    const real radial = dot(gamma, slope.direction), along = slope.across * radial;
    for (int c = 0; c < C; ++c) gamma.v[c] = slope.stretch * gamma.v[c] - along * slope.direction.v[c];
    d_bias.v[0] += radial;
  } else {
    if constexpr (A == kTanh) gamma.v[0] *= slope.stretch;
    add(d_bias, gamma);
  }
}
// The same, chosen by the call.
template <class real, int C>
__device__ inline void activate(Cell<real, C>& z, const Cell<real, C>& bias, int64 activation) {
  if (activation == kModrelu) return activate<kModrelu>(z, bias);
  if (activation == kTanh) return activate<kTanh>(z, bias);
  activate<kIdentity>(z, bias);
}
template <class real, int C>
__device__ inline void descend(Cell<real, C>& gamma, const Cell<real, C>& h, const Cell<real, C>& bias,
                               int64 activation, Cell<real, C>& d_bias) {
  if (activation == kModrelu) return descend<kModrelu>(gamma, slope_at<kModrelu>(h, bias), d_bias);
  if (activation == kTanh) return descend<kTanh>(gamma, slope_at<kTanh>(h, bias), d_bias);
  descend<kIdentity>(gamma, slope_at<kIdentity>(h, bias), d_bias);
}

// Shared memory, as much of it as the launch asked for.
template <class T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes);
}
