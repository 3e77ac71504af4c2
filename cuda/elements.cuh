// Stored numbers, the numbers of the computation, and the elements of the state.
//
// Letters: t time, b batch, n unit, f factor, p/q rows/columns of a factor, c part (re, im).
// Gradients of complex numbers are PyTorch's: dL/dRe + i dL/dIm.
#pragma once

using int64 = long long;

struct bf16 {
  unsigned short bits;
};
struct fp16 {
  unsigned short bits;
};

#ifdef __CUDACC__  // a test build for the host has its own
__device__ inline void fetch_to_l2(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
__device__ inline float half_to_float(unsigned short bits) {
  float a;
  asm("cvt.f32.f16 %0, %1;" : "=f"(a) : "h"(bits));
  return a;
}
__device__ inline unsigned short float_to_half(float a) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(a));
  return bits;
}
#endif

// The type of computation for values stored as `Stored`.
template <class Stored>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class Stored>
using Real = typename Compute<Stored>::type;

__device__ inline float widen(float a) { return a; }
__device__ inline double widen(double a) { return a; }
__device__ inline float widen(bf16 a) { return __uint_as_float(unsigned(a.bits) << 16); }
__device__ inline float widen(fp16 a) { return half_to_float(a.bits); }

__device__ inline void narrow(float a, float& to) { to = a; }
__device__ inline void narrow(double a, double& to) { to = a; }
__device__ inline void narrow(float a, fp16& to) { to.bits = float_to_half(a); }
__device__ inline void narrow(float a, bf16& to) {  // to the nearest, ties to even
  const unsigned bits = __float_as_uint(a);
  to.bits = a != a ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// An element of the state, or an entry of a factor: C = 2 for complex numbers, 1 for real ones.
template <class real, int C>
struct alignas(C * sizeof(real)) Number {
  real v[C];
};

// y += w x
template <class real, int C>
__device__ inline void mac(Number<real, C>& y, const Number<real, C>& w, const Number<real, C>& x) {
  y.v[0] += w.v[0] * x.v[0];
  if constexpr (C == 2) {
    y.v[1] += w.v[0] * x.v[1];
    y.v[0] -= w.v[1] * x.v[1];
    y.v[1] += w.v[1] * x.v[0];
  }
}
// y += g conj(h)
template <class real, int C>
__device__ inline void mac_conj(Number<real, C>& y, const Number<real, C>& g, const Number<real, C>& h) {
  y.v[0] += g.v[0] * h.v[0];
  if constexpr (C == 2) {
    y.v[1] += g.v[1] * h.v[0];
    y.v[0] += g.v[1] * h.v[1];
    y.v[1] -= g.v[0] * h.v[1];
  }
}
// a x + b y
template <class real, int C>
__device__ inline Number<real, C> combine(const Number<real, C>& a, const Number<real, C>& x,
                                        const Number<real, C>& b, const Number<real, C>& y) {
  Number<real, C> sum = {};
  mac(sum, a, x);
  mac(sum, b, y);
  return sum;
}
template <class real, int C>
__device__ inline Number<real, C> conj(Number<real, C> a) {
  if constexpr (C == 2) a.v[1] = -a.v[1];
  return a;
}
template <class real, int C>
__device__ inline void add(Number<real, C>& y, const Number<real, C>& x) {
  for (int c = 0; c < C; ++c) y.v[c] += x.v[c];
}
// Re(g conj(h)): the inner product of two points of the plane
template <class real, int C>
__device__ inline real dot(const Number<real, C>& g, const Number<real, C>& h) {
  real sum = g.v[0] * h.v[0];
  if constexpr (C == 2) sum += g.v[1] * h.v[1];
  return sum;
}

// For normal a > 0: sqrt(a) to the last digit, so that |z| = -b is found where it holds, and 1 / sqrt(a) and
// 1 / a to the last one or two. There are no branches, and none of the calls that exact versions make.
template <class real>
struct Root {
  real root, inverse;
};
__device__ inline Root<float> root_of(float a) {
  const float r = rsqrtf(a), near = a * r;
  return {near + 0.5f * r * (a - near * near), r + r * (0.5f - 0.5f * a * r * r)};
}
__device__ inline Root<double> root_of(double a) {
  const double root = sqrt(a);
  return {root, 1 / root};
}
__device__ inline float inverse(float a) {
  const float r = __fdividef(1.0f, a);
  return r + r * (1.0f - a * r);
}
__device__ inline double inverse(double a) { return 1 / a; }

// R neighbouring elements n, n + 1, .. of one row of `size` elements, loaded or stored at once. A row
// holds all real parts before all imaginary ones.
template <class Stored, int R>
struct alignas(R * sizeof(Stored) < 16 ? R * sizeof(Stored) : 16) Pack {
  Stored v[R];
};

template <class Stored, int R, int C>
struct Packs {
  Pack<Stored, R> of[C];
  __device__ void load(const Stored* row, int64 size, int64 n) {
    for (int c = 0; c < C; ++c) of[c] = *reinterpret_cast<const Pack<Stored, R>*>(row + c * size + n);
  }
  // Brings what `load` will read into the cache, long before.
  __device__ static void fetch(const Stored* row, int64 size, int64 n) {
    for (int c = 0; c < C; ++c) fetch_to_l2(row + c * size + n);
  }
  template <class real>
  __device__ void widen_to(Number<real, C>* elements) const {
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) elements[r].v[c] = widen(of[c].v[r]);
  }
};

template <int R, class Stored, class real, int C>
__device__ inline void load_elements(const Stored* row, int64 size, int64 n, Number<real, C>* elements) {
  Packs<Stored, R, C> packs;
  packs.load(row, size, n);
  packs.widen_to(elements);
}
template <int R, class Stored, class real, int C>
__device__ inline void store_elements(const Number<real, C>* elements, int64 size, int64 n, Stored* row) {
  for (int c = 0; c < C; ++c) {
    Pack<Stored, R> pack;
    for (int r = 0; r < R; ++r) narrow(elements[r].v[c], pack.v[r]);
    *reinterpret_cast<Pack<Stored, R>*>(row + c * size + n) = pack;
  }
}
