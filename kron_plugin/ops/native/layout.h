// What the lanes of a vector hold: one unit of as many sequences, or as many units of one sequence.
//
// OfUnits needs no transposes, keeps a state in so few vectors that it stays in the first-level cache, and
// fills the lanes for a single sequence too. It needs 2x2 factors for the lowest digits of the index, those
// that number the lanes. OfSequences takes any factors.
#pragma once

#include <cstdint>

#include "lanes.h"

// How a row is stored: over what is there, or added to it.
enum class Store { kPlain, kAdd };

template <int N>
struct OfSequences {
  static constexpr int kLanes = N, kSequences = N, kUnits = 1;

  // Element n of an array with one number per unit.
  static KRON_INLINE Lanes<N> of_units(const real* array, int64_t n) { return splat<N>(array[n]); }
  // One number per sequence, and back; `collect` sums over the units of a lane.
  static KRON_INLINE Lanes<N> spread(const real (&a)[N]) { return get<N>(a); }
  static KRON_INLINE void collect(Lanes<N> x, real (&a)[N]) { put<N>(a, x); }
  // Adds to one sum per unit.
  static KRON_INLINE void add_units(Lanes<N> x, int64_t n, double* to) { to[n] += sum<N>(x); }
  // Between the rows of a tensor, one per sequence with C `units` numbers, and elements.
  static void load(const real* const* rows, int64_t units, Element<N>* cells) { load_rows<N>(rows, units, cells); }
  template <Store how>
  static void store(const Element<N>* cells, int64_t units, real* const* rows) {
    store_rows<N, how == Store::kAdd>(cells, units, rows);
  }
};

struct OfUnits {
  static constexpr int kLanes = kMaxLanes, kSequences = 1, kUnits = kMaxLanes;

  static KRON_INLINE Lanes<kLanes> of_units(const real* array, int64_t n) { return get<kLanes>(array + n * kLanes); }
  static KRON_INLINE Lanes<kLanes> spread(const real (&a)[1]) { return splat<kLanes>(a[0]); }
  static KRON_INLINE void collect(Lanes<kLanes> x, real (&a)[1]) { a[0] = sum<kLanes>(x); }
  static KRON_INLINE void add_units(Lanes<kLanes> x, int64_t n, double* to) {
    for (int l = 0; l < kLanes; ++l) to[n * kLanes + l] += at<kLanes>(x, l);
  }
  static KRON_INLINE void load(const real* const* rows, int64_t units, Element<kLanes>* cells) {
    for (int c = 0; c < C; ++c)
      for (int64_t n = 0; n < units / kLanes; ++n) cells[n].v[c] = of_units(rows[0] + c * units, n);
  }
  template <Store how>
  static KRON_INLINE void store(const Element<kLanes>* cells, int64_t units, real* const* rows) {
    for (int c = 0; c < C; ++c)
      for (int64_t n = 0; n < units / kLanes; ++n) {
        real* to = rows[0] + c * units + n * kLanes;
        put<kLanes>(to, how == Store::kAdd ? get<kLanes>(to) + cells[n].v[c] : cells[n].v[c]);
      }
  }
};

constexpr int kWide = OfUnits::kLanes;

// Element n of an array of shape (C, units), the same for all sequences.
template <class Layout>
KRON_INLINE Element<Layout::kLanes> of_units(const real* array, int64_t units, int64_t n) {
  Element<Layout::kLanes> element;
  for (int c = 0; c < C; ++c) element.v[c] = Layout::of_units(array + c * units, n);
  return element;
}

// Brings the n-th part of an array, as large as an element, to the cache. The address need not be valid.
template <int L>
KRON_INLINE void fetch(const real* array, int64_t n) {
  for (int c = 0; c < C; ++c) __builtin_prefetch(array + (n * C + c) * L);
}

// Adds sums over the sequences to `to`, of shape (parts, units).
template <class Layout>
void add_units(const Element<Layout::kLanes>* cells, int64_t units, int parts, double* to) {
  for (int c = 0; c < parts; ++c)
    for (int64_t n = 0; n < units / Layout::kUnits; ++n) Layout::add_units(cells[n].v[c], n, to + c * units);
}

// One row of a tensor per sequence, read as elements. Rows of units need no copy.
template <class Layout>
class Rows {
  static constexpr int L = Layout::kLanes;
  static constexpr bool kCopies = Layout::kUnits == 1;

 public:
  Rows(Arena& arena, int64_t units) : units_(units), cells_(kCopies ? arena.take<Element<L>>(units) : nullptr) {}
  // The row to be read next is `ahead` numbers further on.
  KRON_INLINE void read(const real* const* rows, int64_t ahead) {
    if constexpr (kCopies)
      Layout::load(rows, units_, cells_);
    else
      row_ = rows[0], next_ = row_ + ahead;
  }
  KRON_INLINE Element<L> operator[](int64_t n) const {
    if constexpr (kCopies) return cells_[n];
    return of_units<Layout>(row_, units_, n);
  }
  // Brings a part of the next row, as large as an element, to the cache.
  KRON_INLINE void fetch_next(int64_t n) const { fetch<L>(next_, n); }

 private:
  const int64_t units_;
  Element<L>* const cells_;
  const real *row_ = nullptr, *next_ = nullptr;
};
