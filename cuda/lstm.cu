// The LSTM's recurrence with Kronecker products: z_k = W_k h_{t-1} + u_k + b_k for the gates k = i, f, g,
// o, c_t = sigma(z_f) c_{t-1} + sigma(z_i) tanh(z_g), h_t = sigma(z_o) tanh(c_t). All numbers are real;
// factors may have any sizes. README.md tells how the backward pass is cut.

#include "stages.cuh"

constexpr int kGates = 4;

// As `Call` of step.cuh, where names are the same.
struct LstmCall {
  int64 steps, batch, size, first, inputs, symbols, capacity, cached;
  const void* x;         // stored (T, B, 4 N) or (T, B, I), or int64 (T, B)
  const void* weight;    // stored (I, 4 N)
  const void* bias;      // real (4 N)
  const void* factors;   // real, those of all gates: the adjoints' in the sweep back
  const void* h0;        // real (B, N)
  const void* c0;        // real (B, N)
  const int64* lengths;  // (B)
  void* outputs;         // stored (T, B, N)
  void* kept;            // real (T, 2, B, N): h and c before each step
  void* h_n;             // real (B, N)
  void* c_n;             // real (B, N)
  const void* z;         // real (T, B, 4 N)
  const void* d_outputs; // stored (T, B, N)
  const void* d_h_n;     // real (B, N)
  const void* d_c_n;     // real (B, N)
  void* delta;           // real (T, B, 4 N): dL/dz
  void* d_h0;            // real (B, N)
  void* d_c0;            // real (B, N)
  void* workspace;       // see Stages
  Plan plans[kGates];
};

template <class real>
__device__ inline real sigmoid(real z) {
  return 1 / (1 + exp(-z));
}

// Vectors of a block: h, two for the products, c, and one for each gate.
enum Vector { kH, kA, kB, kC, kZ, kVectors = kZ + kGates };

template <class Stored>
__global__ void __launch_bounds__(kStageThreads, 1) lstm_forward(LstmCall call) {
  using real = Real<Stored>;
  using Element = Cell<real, 1>;
  const Sequence at(call.batch);
  const int64 size = call.size, begin = at.b * size, rows = call.batch * size;
  const Stages<Stored, 1> w(call, kVectors);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  Element *h = w.vector(kH), *c = w.vector(kC);
  for (int n = threadIdx.x; n < size; n += blockDim.x) {
    h[n].v[0] = static_cast<const real*>(call.h0)[begin + n];
    c[n].v[0] = static_cast<const real*>(call.c0)[begin + n];
  }
  for (int64 t = 0; t < call.steps; ++t) {
    for (int k = 0; k < kGates; ++k) {
      __syncthreads();  // h is complete, and all have read the product before
      const Element* product = w.apply(call.plans[k], h, w.vector(kA), w.vector(kB));
      for (int n = threadIdx.x; n < size; n += blockDim.x) {
        Element u;
        read_input<Stored>(call, kGates * size, t, at.b, k * size + n, u);
        u.v[0] += product[n].v[0] + static_cast<const real*>(call.bias)[k * size + n];
        w.vector(kZ + k)[n] = u;
      }
    }
    __syncthreads();  // all are done with h
    for (int n = threadIdx.x; n < size; n += blockDim.x) {
      const real i = sigmoid(w.vector(kZ)[n].v[0]), f = sigmoid(w.vector(kZ + 1)[n].v[0]);
      const real g = tanh(w.vector(kZ + 2)[n].v[0]), o = sigmoid(w.vector(kZ + 3)[n].v[0]);
      const real before_h = h[n].v[0], before_c = c[n].v[0], next = f * before_c + i * g;
      if (t < length) c[n].v[0] = next, h[n].v[0] = o * tanh(next);
      if (!at.real_one) continue;
      real* kept = static_cast<real*>(call.kept) + 2 * t * rows + begin + n;
      if (call.kept) kept[0] = before_h, kept[rows] = before_c;
      if (call.outputs) narrow(h[n].v[0], static_cast<Stored*>(call.outputs)[t * rows + begin + n]);
    }
  }
  for (int n = threadIdx.x; n < size && at.real_one; n += blockDim.x) {
    static_cast<real*>(call.h_n)[begin + n] = h[n].v[0];
    static_cast<real*>(call.c_n)[begin + n] = c[n].v[0];
  }
}

// The sweep back, from z_t and c_{t-1} of all t: delta_t, and the gradients of h0 and c0.
template <class Stored>
__global__ void __launch_bounds__(kStageThreads, 1) lstm_backward(LstmCall call) {
  using real = Real<Stored>;
  using Element = Cell<real, 1>;
  const Sequence at(call.batch);
  const int64 size = call.size, begin = at.b * size, rows = call.batch * size;
  const Stages<Stored, 1> adjoint(call, kVectors);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  Element *d_h = adjoint.vector(kH), *d_c = adjoint.vector(kC);
  for (int n = threadIdx.x; n < size; n += blockDim.x) {
    d_h[n].v[0] = call.d_h_n ? static_cast<const real*>(call.d_h_n)[begin + n] : 0;
    d_c[n].v[0] = call.d_c_n ? static_cast<const real*>(call.d_c_n)[begin + n] : 0;
  }
  for (int64 t = call.steps - 1; t >= 0; --t) {
    const bool live = t < length;
    const int64 row = (t * call.batch + at.b) * kGates * size;
    for (int n = threadIdx.x; n < size; n += blockDim.x) {
      if (call.d_outputs)
        d_h[n].v[0] += widen(static_cast<const Stored*>(call.d_outputs)[t * rows + begin + n]);
      const real* z = static_cast<const real*>(call.z) + row + n;
      const real before = static_cast<const real*>(call.kept)[(2 * t + 1) * rows + begin + n];
      const real i = sigmoid(z[0]), f = sigmoid(z[size]), g = tanh(z[2 * size]);
      const real o = sigmoid(z[3 * size]), bent = tanh(f * before + i * g);
      const real through = d_c[n].v[0] + d_h[n].v[0] * o * (1 - bent * bent);  // dL/dc_t
      const real delta[kGates] = {through * g * i * (1 - i), through * before * f * (1 - f),
                                  through * i * (1 - g * g), d_h[n].v[0] * bent * o * (1 - o)};
      for (int k = 0; k < kGates; ++k) {
        const real mine = live ? delta[k] : 0;
        adjoint.vector(kZ + k)[n].v[0] = mine;
        if (at.real_one) static_cast<real*>(call.delta)[row + k * size + n] = mine;
      }
      if (live) d_c[n].v[0] = through * f, d_h[n].v[0] = 0;
    }
    for (int k = 0; k < kGates; ++k) {
      __syncthreads();
      const Element* product =
          adjoint.apply(call.plans[k], adjoint.vector(kZ + k), adjoint.vector(kA), adjoint.vector(kB));
      for (int n = threadIdx.x; n < size; n += blockDim.x)
        if (live) d_h[n].v[0] += product[n].v[0];
    }
    __syncthreads();  // all have read the gates' gradients
  }
  for (int n = threadIdx.x; n < size && at.real_one; n += blockDim.x) {
    static_cast<real*>(call.d_h0)[begin + n] = d_h[n].v[0];
    static_cast<real*>(call.d_c0)[begin + n] = d_c[n].v[0];
  }
}
