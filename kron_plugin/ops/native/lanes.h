// Vectors over the batch. A block of L sequences runs in lockstep, one sequence per lane, so that every
// operation of the recurrence is a full vector operation for any sizes.
//
// KRON_REAL (float or double) and KRON_COMPLEX (0 or 1) are set on the compiler's command line; each
// of the four variants is a library of its own.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

// Libraries of several types are loaded side by side. None may take another's symbols, so only entries are
// visible.
#pragma GCC visibility push(hidden)
#define KRON_ENTRY extern "C" __attribute__((visibility("default")))

using real = KRON_REAL;
constexpr int C = KRON_COMPLEX ? 2 : 1;  // real numbers in an element: (re, im) or one
constexpr int kMaxLanes = 64 / sizeof(real);

#define KRON_INLINE inline __attribute__((always_inline))
#define KRON_OUTLINE __attribute__((noinline))  // long loops: one copy each, for the compile time

template <class T, int L>
struct VectorType {
  typedef T type __attribute__((vector_size(L * sizeof(T))));
};
template <class T>
struct VectorType<T, 1> {
  typedef T type;
};
template <int L>
using Lanes = typename VectorType<real, L>::type;

// One element of the state in L sequences at once, and one element of a matrix.
template <int L>
struct Element {
  Lanes<L> v[C];
};
struct Coef {
  real v[C];
};

template <int L>
KRON_INLINE Lanes<L> get(const real* from) {
  Lanes<L> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
template <int L>
KRON_INLINE void put(real* to, Lanes<L> v) {
  __builtin_memcpy(to, &v, sizeof(v));
}
template <int L>
KRON_INLINE Lanes<L> splat(real a) {
  return Lanes<L>{} + a;
}
// One lane.
template <int L>
KRON_INLINE real at(Lanes<L> v, int l) {
  if constexpr (L == 1)
    return v;
  else
    return v[l];
}

// y += w x
template <int L>
KRON_INLINE void mac(Element<L>& y, const Element<L>& w, const Element<L>& x) {
  y.v[0] += w.v[0] * x.v[0];
  if constexpr (C == 2) {
    y.v[1] += w.v[0] * x.v[1];
    y.v[0] -= w.v[1] * x.v[1];
    y.v[1] += w.v[1] * x.v[0];
  }
}
template <int L>
KRON_INLINE Element<L> splat(const Coef& w) {
  Element<L> cell;
  for (int c = 0; c < C; ++c) cell.v[c] = splat<L>(w.v[c]);
  return cell;
}
// y += g conj(h)
template <int L>
KRON_INLINE void mac_conj(Element<L>& y, const Element<L>& g, const Element<L>& h) {
  y.v[0] += g.v[0] * h.v[0];
  if constexpr (C == 2) {
    y.v[1] += g.v[1] * h.v[0];
    y.v[0] += g.v[1] * h.v[1];
    y.v[1] -= g.v[0] * h.v[1];
  }
}
template <int L>
KRON_INLINE void add(Element<L>& y, const Element<L>& x) {
  for (int c = 0; c < C; ++c) y.v[c] += x.v[c];
}
// Re(g conj(h)) summed over the parts: the inner product of two points of the plane
template <int L>
KRON_INLINE Lanes<L> dot(const Element<L>& g, const Element<L>& h) {
  Lanes<L> sum = g.v[0] * h.v[0];
  if constexpr (C == 2) sum += g.v[1] * h.v[1];
  return sum;
}

// Integers of the size of `real`, and the bits of one as the other.
using integer = std::conditional_t<sizeof(real) == 4, int32_t, int64_t>;
template <int L>
using Integers = typename VectorType<integer, L>::type;
template <class To, class From>
KRON_INLINE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// Divisions and roots take as long as thirty multiply-adds. These begin with the exponent and the mantissa
// halved, or negated, as one integer, which is right to 4 and 12 percent. Each round then makes an error e
// about e^3. The result is right to the last digit or two. x must be normal and finite; 0 gives a large number.

constexpr int kRounds = sizeof(real) == 4 ? 2 : 3;

// 1 / sqrt(x)
template <int L>
KRON_INLINE Lanes<L> inverse_root(Lanes<L> x) {
  constexpr integer kMagic = sizeof(real) == 4 ? integer(0x5f3759df) : integer(0x5fe6eb50c7b537a9);
  Lanes<L> y = same_bits<Lanes<L>>(kMagic - (same_bits<Integers<L>>(x) >> 1));
#pragma GCC unroll 3
  for (int i = 0; i < kRounds; ++i) {
    const Lanes<L> e = 1 - (x * y) * y;  // y * y would be infinite for 0
    y += y * e * (real(0.375) * e + real(0.5));
  }
  return y;
}
// 1 / x for positive x
template <int L>
KRON_INLINE Lanes<L> inverse(Lanes<L> x) {
  constexpr integer kMagic = sizeof(real) == 4 ? integer(0x7ef311c3) : integer(0x7fde623822fc16e6);
  Lanes<L> y = same_bits<Lanes<L>>(kMagic - same_bits<Integers<L>>(x));
#pragma GCC unroll 3
  for (int i = 0; i < kRounds; ++i) {
    const Lanes<L> e = 1 - x * y;
    y += y * (e * e + e);
  }
  return y;
}
template <int L>
KRON_INLINE real sum(Lanes<L> x) {
  real a[L];
  put<L>(a, x);
  for (int half = L / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) a[l] += a[l + half];
  return a[0];
}

template <class To, int L, class From>
KRON_INLINE auto convert(From x) {
  if constexpr (L == 1)
    return static_cast<To>(x);
  else
    return __builtin_convertvector(x, typename VectorType<To, L>::type);
}

constexpr double inverse_factorial(int j) { return j > 1 ? inverse_factorial(j - 1) / j : 1; }

// m = e^a - 1 for 0 <= a <= 80. With a = k ln 2 + r, m = 2^k (e^r - 1) + (2^k - 1), and e^r - 1 is its
// Taylor series in |r| <= ln(2)/2, to the last digit and without cancellation near 0.
template <int L>
KRON_INLINE Lanes<L> exponential_less_one(Lanes<L> a) {
  constexpr int kTerms = sizeof(real) == 4 ? 7 : 14;
  constexpr int kMantissa = sizeof(real) == 4 ? 23 : 52, kBias = sizeof(real) == 4 ? 127 : 1023;
  const auto whole = convert<integer, L>(a * real(1.4426950408889634) + real(0.5));
  const Lanes<L> k = convert<real, L>(whole);
  // ln 2 in two pieces; the first is so short that k times it is exact
  const Lanes<L> r = (a - k * real(0.693145751953125)) - k * real(1.42860682030941723212e-6);
  Lanes<L> series = splat<L>(real(inverse_factorial(kTerms)));
#pragma GCC unroll 16
  for (int j = kTerms - 1; j > 0; --j) series = series * r + real(inverse_factorial(j));
  const auto bits = convert<std::make_unsigned_t<integer>, L>(whole + kBias) << kMantissa;  // NaN: negative
  const Lanes<L> power = same_bits<Lanes<L>>(bits);
  return power * (series * r) + (power - 1);
}
// tanh |x| = m / (m + 2) with m = e^{2|x|} - 1
template <int L>
KRON_INLINE Lanes<L> hyperbolic_tangent(Lanes<L> x) {
  const Lanes<L> a = 2 * (x < 0 ? -x : x);
  const Lanes<L> m = exponential_less_one<L>(a > 40 ? splat<L>(40) : a);  // tanh 20 rounds to 1; NaN stays
  const Lanes<L> tangent = m * inverse<L>(m + 2);
  return x < 0 ? -tangent : tangent;
}
// 1 / (1 + e^{-|x|}) = (m + 1) / (m + 2) with m = e^{|x|} - 1, and 1 / (m + 2) on the other side of 0
template <int L>
KRON_INLINE Lanes<L> sigmoid(Lanes<L> x) {
  const Lanes<L> a = x < 0 ? -x : x;
  const Lanes<L> m = exponential_less_one<L>(a > 80 ? splat<L>(80) : a);  // e^-80 = 2e-35 counts as 0
  return (x < 0 ? splat<L>(1) : m + 1) * inverse<L>(m + 2);
}

// ---- between the rows of a torch tensor (one row per sequence) and cells (one lane per sequence)

template <int L, int D, int... I>
KRON_INLINE void exchange(Lanes<L>& a, Lanes<L>& b, std::integer_sequence<int, I...>) {
  const Lanes<L> low = __builtin_shufflevector(a, b, (I & D ? I - D + L : I)...);
  b = __builtin_shufflevector(a, b, (I & D ? I + L : I + D)...);
  a = low;
}
// The L x L transpose, in log2 L rounds: round D swaps the off-diagonal quarters of all 2D x 2D squares.
template <int L, int D = L / 2>
KRON_INLINE void transpose(Lanes<L> (&rows)[L]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (!(i & D))
        exchange<L, D>(rows[i], rows[i + D], std::make_integer_sequence<int, L>());
    transpose<L, D / 2>(rows);
  }
}

template <int L, int D, int... I>
KRON_INLINE Lanes<L> crossed(Lanes<L> x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, (I ^ D)...);
}
// Lane l of the result is lane l ^ D of x.
template <int L, int D>
KRON_INLINE Element<L> crossed(const Element<L>& x) {
  Element<L> y;
  for (int c = 0; c < C; ++c) y.v[c] = crossed<L, D>(x.v[c], std::make_integer_sequence<int, L>());
  return y;
}

// sums[j] = the sum of the lanes of x[j]; one transpose makes L of them.
template <int L, int M>
KRON_INLINE void sum_each(const Lanes<L> (&x)[M], real (&sums)[M]) {
  for (int j = 0; j < M; j += L) {
    Lanes<L> square[L] = {};
    for (int l = 0; l < L && j + l < M; ++l) square[l] = x[j + l];
    transpose<L>(square);
    for (int l = 1; l < L; ++l) square[0] += square[l];
    real a[L];
    put<L>(a, square[0]);
    for (int l = 0; l < L && j + l < M; ++l) sums[j + l] = a[l];
  }
}

// rows[l] is sequence l's vector of C n reals: all real parts, then all imaginary parts.
template <int L>
KRON_OUTLINE void load_rows(const real* const* rows, int64_t n, Element<L>* cells) {
  for (int c = 0; c < C; ++c) {
    int64_t i = 0;
    if constexpr (L > 1)
      for (; i + L <= n; i += L) {
        Lanes<L> square[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) square[l] = get<L>(rows[l] + c * n + i);
        transpose<L>(square);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) cells[i + l].v[c] = square[l];
      }
    for (; i < n; ++i) {
      real a[L];
      for (int l = 0; l < L; ++l) a[l] = rows[l][c * n + i];
      cells[i].v[c] = get<L>(a);
    }
  }
}

// The reverse. With `add` it adds to the rows, one after the other, so two rows may be the same one.
template <int L, bool add>
KRON_OUTLINE void store_rows(const Element<L>* cells, int64_t n, real* const* rows) {
  for (int c = 0; c < C; ++c) {
    int64_t i = 0;
    if constexpr (L > 1)
      for (; i + L <= n; i += L) {
        Lanes<L> square[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) square[l] = cells[i + l].v[c];
        transpose<L>(square);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) {
          real* row = rows[l] + c * n + i;
          put<L>(row, add ? get<L>(row) + square[l] : square[l]);
        }
      }
    for (; i < n; ++i) {
      real a[L];
      put<L>(a, cells[i].v[c]);
      for (int l = 0; l < L; ++l) rows[l][c * n + i] = add ? rows[l][c * n + i] + a[l] : a[l];
    }
  }
}

// ---- scratch memory

// Scratch arrays that exist as long as their arena; large ones are in huge pages. All are zero at first, and
// `clear` sets those of `sums` to zero again. Starts are skewed: equal offsets in arrays a power of two apart
// would map to the same cache set. Small arrays share memory, since to map and unmap costs as much as a short
// call computes.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  ~Arena() {
    for (const auto& [block, bytes] : blocks_) munmap(block, bytes);
  }
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes > kSmall) {
      const size_t skew = kLine * (5 * blocks_.size() % 61);
      return reinterpret_cast<T*>(map(bytes + skew) + skew);
    }
    const size_t needed = (bytes / kLine + 6) * kLine;
    if (needed > left_) free_ = map(left_ = 4 * kSmall);
    char* const array = free_;
    free_ += needed;
    left_ -= needed;
    return reinterpret_cast<T*>(array);
  }
  template <class T>
  T* sums(int64_t count) {
    T* array = take<T>(count);
    sums_.emplace_back(array, count * sizeof(T));
    return array;
  }
  void clear() {
    for (const auto& [array, bytes] : sums_) std::memset(array, 0, bytes);
  }

 private:
  static constexpr size_t kHuge = size_t(1) << 21, kLine = 64, kSmall = size_t(1) << 15;

  char* map(size_t bytes) {
    void* block = mmap(nullptr, bytes + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    blocks_.emplace_back(block, bytes + 1);
    if (bytes >= kHuge) madvise(block, bytes, MADV_HUGEPAGE);
    return static_cast<char*>(block);
  }

  std::vector<std::pair<void*, size_t>> blocks_, sums_;
  char* free_ = nullptr;  // of the last memory for small arrays
  size_t left_ = 0;
};
