// The recurrence with one launch for each factor of each step, as the first implementations of KRU had
// it: to compare with only. Complex 2x2 factors, modReLU, float32; states of B rows, N real parts and N
// imaginary parts. A vector of the stage of factor f has the shape (outer, 2, inner); a thread has one of
// its pairs.

struct Pair {
  float low[2], high[2];
};

__device__ Pair load(const float* x, int row, int size, int at, int inner) {
  const float* from = x + 2 * row * size + at;
  return {{from[0], from[size]}, {from[inner], from[size + inner]}};
}
__device__ void store(const Pair& v, float* x, int row, int size, int at, int inner) {
  float* to = x + 2 * row * size + at;
  to[0] = v.low[0], to[size] = v.low[1], to[inner] = v.high[0], to[size + inner] = v.high[1];
}
__device__ void mac(float* y, const float* w, const float* x) {
  y[0] += w[0] * x[0] - w[1] * x[1];
  y[1] += w[0] * x[1] + w[1] * x[0];
}
__device__ void mac_conj(float* y, const float* g, const float* x) {  // y += g conj(x)
  y[0] += g[0] * x[0] + g[1] * x[1];
  y[1] += g[1] * x[0] - g[0] * x[1];
}

extern "C" __global__ void stage_forward(const float* x, const float* w, float* y, int size, int inner) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (i >= size / 2) return;
  const int at = i / inner * 2 * inner + i % inner;
  const Pair v = load(x, row, size, at, inner);
  Pair out = {};
  mac(out.low, w, v.low), mac(out.low, w + 2, v.high);
  mac(out.high, w + 4, v.low), mac(out.high, w + 6, v.high);
  store(out, y, row, size, at, inner);
}

// dx = W_f^H g, and dW_f += sums over rows and pairs: a block's by a tree, the blocks' by atomics.
extern "C" __global__ void stage_backward(const float* x, const float* w, const float* g, float* dx, float* dw,
                                          int size, int inner) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  __shared__ float sums[8][256];
  float share[8] = {};
  if (i < size / 2) {
    const int at = i / inner * 2 * inner + i % inner;
    const Pair v = load(x, row, size, at, inner), d = load(g, row, size, at, inner);
    float adjoint[8];
    for (int k = 0; k < 8; ++k) adjoint[k] = k % 2 ? -w[k] : w[k];
    Pair out = {};
    mac(out.low, adjoint, d.low), mac(out.low, adjoint + 4, d.high);
    mac(out.high, adjoint + 2, d.low), mac(out.high, adjoint + 6, d.high);
    store(out, dx, row, size, at, inner);
    mac_conj(share, d.low, v.low), mac_conj(share + 2, d.low, v.high);
    mac_conj(share + 4, d.high, v.low), mac_conj(share + 6, d.high, v.high);
  }
  for (int k = 0; k < 8; ++k) sums[k][threadIdx.x] = share[k];
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int k = 0; k < 8; ++k) sums[k][threadIdx.x] += sums[k][threadIdx.x + half];
  }
  if (threadIdx.x == 0)
    for (int k = 0; k < 8; ++k) atomicAdd(dw + k, sums[k][0]);
}

extern "C" __global__ void activation_forward(const float* z, const float* u, const float* bias, float* h,
                                              int size) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x, row = 2 * blockIdx.y * size + n;
  if (n >= size) return;
  const float re = z[row] + u[row], im = z[row + size] + u[row + size];
  const float modulus = sqrtf(re * re + im * im);
  const float scale = modulus == 0 ? 0 : fmaxf(modulus + bias[n], 0) / modulus;
  h[row] = scale * re, h[row + size] = scale * im;
}

// From dL/dh_t, which is what comes from the step after and from outside, to dL/dz_t, by h_t alone
// (cuda/README.md).
extern "C" __global__ void activation_backward(const float* h, const float* bias, const float* after,
                                               const float* outside, float* delta, float* d_bias, int size) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x, row = 2 * blockIdx.y * size + n;
  if (n >= size) return;
  const float re = h[row], im = h[row + size], modulus = sqrtf(re * re + im * im);
  const bool dead = modulus < 1e-30f;
  const float before = dead ? 1 : fmaxf(modulus - bias[n], 1e-30f), inverse = dead ? 0 : 1 / modulus;
  const float gamma[2] = {after[row] + outside[row], after[row + size] + outside[row + size]};
  const float radial = (gamma[0] * re + gamma[1] * im) * inverse;
  const float along = bias[n] / before * radial * inverse, stretch = dead ? 0 : modulus / before;
  delta[row] = stretch * gamma[0] - along * re;
  delta[row + size] = stretch * gamma[1] - along * im;
  atomicAdd(d_bias + n, radial);
}
