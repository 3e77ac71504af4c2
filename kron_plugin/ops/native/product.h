// y = (W_0 (x) W_1 (x) ... (x) W_{F-1}) x, or the same with the adjoint W^H, on a block of lanes.
//
// Factor f works on digit f of the index n; the factors commute, and each is a small matrix product
// over one strided axis. Three things make it fast:
//
// - A 2x2 factor is written as diag(d_0, d_1) [[1, a], [b, 1]], with its rows swapped first if that
//   makes the pivots larger. The diagonals of all factors become one diagonal at the end, and the
//   swaps an XOR of indices at load. A stage then needs one multiplication per element, not two.
// - Up to three neighbouring 2x2 factors are applied in registers, eight elements at a time.
// - If the lanes are units, the factors of the lowest digits exchange lanes, after all other stages.
// - Stages are grouped so that a group's tile stays in the second-level cache.
#pragma once

#include <algorithm>
#include <complex>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "layout.h"

struct Factor {
  int64_t p, q;            // rows and columns as applied: swapped already for an adjoint
  std::vector<Coef> coef;  // shape (p, q)
};

// Factors stored one after the other, row by row, as they are or as adjoints.
inline std::vector<Factor> read_factors(int64_t count, const int64_t* shapes, const real* data,
                                        bool adjoint) {
  std::vector<Factor> factors;
  for (int64_t f = 0; f < count; ++f) {
    const int64_t rows = shapes[2 * f], columns = shapes[2 * f + 1];
    Factor w{adjoint ? columns : rows, adjoint ? rows : columns, {}};
    w.coef.resize(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j, data += C) {
        Coef& to = w.coef[adjoint ? j * rows + i : i * columns + j];
        for (int c = 0; c < C; ++c) to.v[c] = c == 1 && adjoint ? -data[c] : data[c];
      }
    factors.push_back(std::move(w));
  }
  return factors;
}

// One pass over the elements: a dense p x q product, or `bits` merged butterflies (p = q = 2^bits).
struct Stage {
  int64_t p, q;
  int bits = 0;
  int64_t swap = 0;        // butterflies: input j ^ swap takes the part of input j
  std::vector<Coef> coef;  // butterflies: (a, b) a bit, lowest bit first; dense: packed by `pack`
};

// Stages on neighbouring digits: for each of `outer` indices above and `inner` below, tile by tile.
struct Group {
  std::vector<Stage> stages;  // the lowest digit first
  int64_t outer, inner, tile;
};

constexpr int kRows = 4;  // rows of a dense stage summed together in registers
constexpr int kMaxBits = 3;
// A tile and its result fill half of a common second-level cache. Tiles that fit the first level were
// slower: a stage computes long enough on an element to hide the latency of the second level.
constexpr int64_t kTileBytes = 262144;

// Rows in blocks of 4, 2 or 1. `pack` stores a block column by column, the order in which it is read.
template <class Block>
void for_row_blocks(int64_t rows, Block block) {
  for (int64_t p = 0, size; p < rows; p += size) {
    size = rows - p >= kRows ? kRows : rows - p >= 2 ? 2 : 1;
    block(p, size);
  }
}
inline Stage pack(const Factor& w) {
  Stage stage{w.p, w.q, 0, 0, {}};
  for_row_blocks(w.p, [&](int64_t p, int64_t size) {
    for (int64_t q = 0; q < w.q; ++q)
      for (int64_t i = p; i < p + size; ++i) stage.coef.push_back(w.coef[i * w.q + q]);
  });
  return stage;
}

using wide = std::complex<double>;
inline wide widen(const Coef& a) { return {double(a.v[0]), C == 2 ? double(a.v[C - 1]) : 0.0}; }
inline Coef narrow(wide a) {
  Coef coef;
  coef.v[0] = real(a.real());
  if (C == 2) coef.v[C - 1] = real(a.imag());
  return coef;
}

struct Butterfly {
  bool usable, swapped;
  wide diagonal[2], a, b;
};
// Not usable if both pivot pairs are tiny beside the factor's entries: a or b would be huge or infinite.
// Such a factor is far from unitary.
inline Butterfly butterfly(const Factor& w) {
  if (w.p != 2 || w.q != 2) return {};
  wide m[4];
  for (int i = 0; i < 4; ++i) m[i] = widen(w.coef[i]);
  const bool swapped = std::norm(m[1]) * std::norm(m[2]) > std::norm(m[0]) * std::norm(m[3]);
  if (swapped) std::swap(m[0], m[1]), std::swap(m[2], m[3]);  // swaps columns, that is, inputs
  double largest = 0;
  for (const wide& entry : m) largest = std::max(largest, std::abs(entry));
  const double pivots = std::abs(m[0]) * std::abs(m[3]);
  if (!(pivots > 0.01 * largest * largest)) return {};
  return {true, swapped, {m[0], m[3]}, m[1] / m[0], m[2] / m[3]};
}

constexpr int log2_of(int64_t n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }

// Whether lanes can hold units: the lowest digits, and at least one more, have 2x2 factors that are usable.
inline bool can_hold_units(int64_t count, const int64_t* shapes, const real* factors) {
  const int64_t above = count - log2_of(kMaxLanes);
  if (above < 1) return false;
  for (int64_t f = 0; f < above; ++f) {
    if (shapes[2 * f] != shapes[2 * f + 1]) return false;
    factors += shapes[2 * f] * shapes[2 * f + 1] * C;
  }
  shapes += 2 * above;
  for (const Factor& w : read_factors(count - above, shapes, factors, false))
    if (!butterfly(w).usable) return false;
  return true;
}

class Product {
 public:
  // `cell_bytes` is the size of an element in the block this will run on. An element has `units`, and the
  // factors of its lowest log2(units) digits must be usable butterflies.
  Product(const std::vector<Factor>& factors, int64_t cell_bytes, int64_t units = 1) {
    std::vector<Butterfly> cut;
    for (const Factor& w : factors) cut.push_back(butterfly(w));
    make_diagonal(factors, cut);
    cross(cut, log2_of(units));
    std::vector<Stage> stages = plan(factors, cut, factors.size() - log2_of(units));
    int64_t outer = 1, inner = 1;
    for (const Stage& stage : stages) outer *= stage.q;
    for (size_t first = 0; first < stages.size();) {
      const size_t last = fit(stages, first, cell_bytes);
      add_group({stages.begin() + first, stages.begin() + last}, outer, inner, cell_bytes);
      first = last;
    }
  }
  // One factor alone, on digits with `outer` indices above and `inner` below.
  Product(const Factor& factor, int64_t outer, int64_t inner, int64_t cell_bytes) {
    outer *= factor.q;
    add_group({pack(factor)}, outer, inner, cell_bytes);
  }

  const std::vector<Group>& groups() const { return groups_; }
  // Element n of the result, from what `apply` makes of it.
  template <class Layout>
  KRON_INLINE Element<Layout::kLanes> finished(Element<Layout::kLanes> z, int64_t n) const {
    if constexpr (Layout::kUnits > 1) cross_lanes<Layout::kLanes, 1>(z);
    if (diagonal_.empty()) return z;
    Element<Layout::kLanes> scaled = {};
    mac(scaled, of_units<Layout>(diagonal_.front().v, size_, n), z);
    return scaled;
  }
  int64_t capacity() const { return capacity_; }  // cells of the largest intermediate vector
  int64_t scratch() const { return scratch_; }    // cells of the largest intermediate tile

 private:
  struct alignas(64) Line {
    real v[kMaxLanes];
  };
  // The diagonal of all factors, first factor slowest; real parts, then imaginary ones.
  void make_diagonal(const std::vector<Factor>& factors, const std::vector<Butterfly>& cut) {
    if (std::none_of(cut.begin(), cut.end(), [](const Butterfly& w) { return w.usable; })) return;
    std::vector<wide> diagonal{1.0};
    for (size_t f = 0; f < factors.size(); ++f) {
      std::vector<wide> longer;
      for (wide d : diagonal)
        for (int64_t p = 0; p < factors[f].p; ++p)
          longer.push_back(cut[f].usable ? d * cut[f].diagonal[p] : d);
      diagonal = std::move(longer);
    }
    size_ = diagonal.size();
    diagonal_.resize((C * size_ + kMaxLanes - 1) / kMaxLanes);
    real* const to = diagonal_.front().v;
    for (int64_t n = 0; n < size_; ++n)
      for (int c = 0; c < C; ++c) to[c * size_ + n] = narrow(diagonal[n]).v[c];
  }
  // The lowest `bits` digits: lane l gets a or b of lane l with this bit the other way.
  void cross(const std::vector<Butterfly>& cut, int bits) {
    for (int k = 0; k < bits; ++k) {
      const Butterfly& w = cut[cut.size() - 1 - k];
      const Coef coef[] = {narrow(w.a), narrow(w.b)};
      for (int c = 0; c < C; ++c) {
        crossing_.emplace_back();
        for (int l = 0; l < kMaxLanes; ++l) crossing_.back().v[l] = coef[l >> k & 1].v[c];
      }
      if (w.swapped) lane_swap_ |= 1 << k;
    }
  }
  template <int L, int D>
  KRON_INLINE void cross_lanes(Element<L>& z) const {
    if constexpr (D == 1)
      if (lane_swap_) swap_lanes<L, 1>(z);
    if constexpr (D < L) {
      Element<L> w;
      for (int c = 0; c < C; ++c) w.v[c] = get<L>(crossing_[C * log2_of(D) + c].v);
      mac(z, w, crossed<L, D>(z));
      cross_lanes<L, 2 * D>(z);
    }
  }
  template <int L, int D>
  KRON_INLINE void swap_lanes(Element<L>& z) const {
    if constexpr (D < L) {
      if (lane_swap_ & D) z = crossed<L, D>(z);
      swap_lanes<L, 2 * D>(z);
    }
  }
  // Stages of the first `count` factors, the lowest digit first.
  static std::vector<Stage> plan(const std::vector<Factor>& factors, const std::vector<Butterfly>& cut, size_t count) {
    std::vector<Stage> stages;
    for (size_t f = count; f-- > 0;) {
      if (!cut[f].usable) {
        stages.push_back(pack(factors[f]));
        continue;
      }
      size_t run = 1;
      while (run <= f && cut[f - run].usable) ++run;
      const size_t bits = (run + (run + kMaxBits - 1) / kMaxBits - 1) / ((run + kMaxBits - 1) / kMaxBits);
      Stage stage{int64_t(1) << bits, int64_t(1) << bits, int(bits), 0, {}};
      for (size_t k = 0; k < bits; ++k) {
        const Butterfly& cell = cut[f - k];
        stage.coef.push_back(narrow(cell.a));
        stage.coef.push_back(narrow(cell.b));
        if (cell.swapped) stage.swap |= int64_t(1) << k;
      }
      stages.push_back(std::move(stage));
      f -= bits - 1;
    }
    return stages;
  }
  // The most rows that a tile has before, between or after the stages first..last-1.
  static int64_t tile_rows(const std::vector<Stage>& stages, size_t first, size_t last) {
    int64_t rows = 1, most;
    for (size_t i = first; i < last; ++i) rows *= stages[i].q;
    most = rows;
    for (size_t i = first; i < last; ++i) most = std::max(most, rows = rows / stages[i].q * stages[i].p);
    return most;
  }
  static size_t fit(const std::vector<Stage>& stages, size_t first, int64_t cell_bytes) {
    const int64_t line = std::max<int64_t>(1, 64 / cell_bytes);  // the least width of a tile, in cells
    size_t last = first + 1;
    while (last < stages.size() &&
           tile_rows(stages, first, last + 1) * line * cell_bytes <= kTileBytes)
      ++last;
    return last;
  }
  void add_group(std::vector<Stage> stages, int64_t& outer, int64_t& inner, int64_t cell_bytes) {
    const int64_t rows = tile_rows(stages, 0, stages.size());
    const int64_t tile = std::clamp<int64_t>(kTileBytes / (rows * cell_bytes), 1, inner);
    int64_t above = outer, below = inner;
    for (const Stage& stage : stages) above /= stage.q, below *= stage.p;
    capacity_ = std::max({capacity_, outer * inner, above * below});
    scratch_ = std::max(scratch_, rows * tile);
    groups_.push_back({std::move(stages), above, inner, tile});
    outer = above;
    inner = below;
  }

  std::vector<Group> groups_;
  std::vector<Line> diagonal_;  // shape: (C, size_); or empty
  std::vector<Line> crossing_;  // shape: (bits, C), if elements have several units
  int64_t size_ = 0, capacity_ = 0, scratch_ = 0;
  int lane_swap_ = 0;  // like Stage::swap
};

// A strided view of a tile: element (row, s) is data[row * stride + s].
template <class T>
struct Tile {
  T* data;
  int64_t stride;
};

// For all a < outer, i < inner, s < width: y[(a, p, i), s] = sum_q w[p, q] x[(a, q, i), s].
template <int L, int K>
KRON_OUTLINE void butterflies(const Stage& stage, Tile<const Element<L>> x, Tile<Element<L>> y, int64_t outer,
                 int64_t inner, int64_t width) {
  constexpr int R = 1 << K;
  int64_t from[R];
  for (int j = 0; j < R; ++j) from[j] = (j ^ stage.swap) * inner * x.stride;
  Element<L> upper[K], lower[K];
  for (int k = 0; k < K; ++k) {
    upper[k] = splat<L>(stage.coef[2 * k]);
    lower[k] = splat<L>(stage.coef[2 * k + 1]);
  }
  for (int64_t a = 0; a < outer; ++a)
    for (int64_t i = 0; i < inner; ++i) {
      const Element<L>* in = x.data + (a * R * inner + i) * x.stride;
      Element<L>* out = y.data + (a * R * inner + i) * y.stride;
      for (int64_t s = 0; s < width; ++s) {
        Element<L> v[R];
#pragma GCC unroll 8
        for (int j = 0; j < R; ++j) v[j] = in[from[j] + s];
#pragma GCC unroll 3
        for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
          for (int j = 0; j < R; ++j)
            if (!(j >> k & 1)) {
              const Element<L> low = v[j];
              mac(v[j], upper[k], v[j | 1 << k]);
              mac(v[j | 1 << k], lower[k], low);
            }
#pragma GCC unroll 8
        for (int j = 0; j < R; ++j) out[j * inner * y.stride + s] = v[j];
      }
    }
}

// Columns (a, i, s) of a stage one after the other, as offsets into x and y.
struct Columns {
  int64_t inner, width, x_outer, x_stride, y_outer, y_stride;
  int64_t x = 0, y = 0, i = 0, s = 0;
  KRON_INLINE void next() {
    ++x, ++y;
    if (++s < width) return;
    s = 0;
    x += x_stride - width, y += y_stride - width;
    if (++i < inner) return;
    i = 0;
    x += x_outer - inner * x_stride, y += y_outer - inner * y_stride;
  }
};

// R rows of the product for S columns.
template <int L, int R, int S>
KRON_INLINE void dense_block(const Coef* w, int64_t count, const Element<L>* const* in, int64_t x_step,
                             Element<L>* const* out, int64_t y_step) {
  Element<L> acc[R][S] = {};
  for (int64_t q = 0; q < count; ++q) {
    Element<L> value[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) value[s] = in[s][q * x_step];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) mac(acc[r][s], splat<L>(w[q * R + r]), value[s]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) out[s][r * y_step] = acc[r][s];
}

// R rows of the product, from p0 on. Several columns at once keep enough sums in progress.
template <int L, int R>
KRON_OUTLINE void dense_rows(const Coef* w, int64_t p0, const Stage& stage, Tile<const Element<L>> x,
                             Tile<Element<L>> y, int64_t outer, int64_t inner, int64_t width) {
  constexpr int kColumns = C == 2 ? 1 : 3;
  Columns at{inner, width, stage.q * inner * x.stride, x.stride, stage.p * inner * y.stride, y.stride};
  const int64_t x_step = inner * x.stride, y_step = inner * y.stride;
  const Element<L>* in[kColumns];
  Element<L>* out[kColumns];
  const auto take = [&](int s) {
    in[s] = x.data + at.x;
    out[s] = y.data + p0 * y_step + at.y;
    at.next();
  };
  int64_t left = outer * inner * width;
  for (; left >= kColumns; left -= kColumns) {
    for (int s = 0; s < kColumns; ++s) take(s);
    dense_block<L, R, kColumns>(w, stage.q, in, x_step, out, y_step);
  }
  for (; left > 0; --left) {
    take(0);
    dense_block<L, R, 1>(w, stage.q, in, x_step, out, y_step);
  }
}

template <int L>
KRON_OUTLINE void run_stage(const Stage& stage, Tile<const Element<L>> x, Tile<Element<L>> y, int64_t outer,
               int64_t inner, int64_t width) {
  if (x.stride == width && y.stride == width) {  // contiguous: one long inner loop
    x.stride = y.stride = width *= inner;
    inner = 1;
  }
  switch (stage.bits) {
    case 1: return butterflies<L, 1>(stage, x, y, outer, inner, width);
    case 2: return butterflies<L, 2>(stage, x, y, outer, inner, width);
    case 3: return butterflies<L, 3>(stage, x, y, outer, inner, width);
  }
  for_row_blocks(stage.p, [&](int64_t p, int64_t size) {
    const Coef* w = stage.coef.data() + p * stage.q;
    if (size == 4) dense_rows<L, 4>(w, p, stage, x, y, outer, inner, width);
    if (size == 2) dense_rows<L, 2>(w, p, stage, x, y, outer, inner, width);
    if (size == 1) dense_rows<L, 1>(w, p, stage, x, y, outer, inner, width);
  });
}

// Scratch memory of a product: two whole vectors and two tiles.
template <int L>
struct Workspace {
  Element<L>*whole[2], *tile[2];
  Workspace(Arena& arena, const std::vector<const Product*>& products) {
    int64_t capacity = 0, scratch = 0;
    for (const Product* w : products) {
      if (w->groups().size() > 1) capacity = std::max(capacity, w->capacity());
      scratch = std::max(scratch, w->scratch());
    }
    for (int i = 0; i < 2; ++i) {
      whole[i] = capacity ? arena.take<Element<L>>(capacity) : nullptr;
      tile[i] = arena.take<Element<L>>(scratch);
    }
  }
};

// Applies the product, up to `Product::finished`, to `in` and writes `out`, which must be another array.
// finish(n, count) is called as soon as elements n..n+count-1 are written, once for each element. There
// the caller calls `finished` and does its other work on results, which are still in the cache.
template <int L, class Finish>
KRON_INLINE void apply(const Product& product, const Element<L>* in, Element<L>* out, Workspace<L>& work,
                       Finish finish) {
  for (size_t g = 0; g < product.groups().size(); ++g) {
    const Group& group = product.groups()[g];
    const bool is_last = g + 1 == product.groups().size();
    int64_t rows_in = 1, rows_out = 1;
    for (const Stage& stage : group.stages) rows_in *= stage.q, rows_out *= stage.p;
    Element<L>* to = is_last ? out : work.whole[g & 1];
    for (int64_t a = 0; a < group.outer; ++a)
      for (int64_t s = 0; s < group.inner; s += group.tile) {
        const int64_t width = std::min(group.tile, group.inner - s);
        Tile<const Element<L>> x{in + a * rows_in * group.inner + s, group.inner};
        int64_t above = rows_in, below = 1;
        for (size_t i = 0; i < group.stages.size(); ++i) {
          const Stage& stage = group.stages[i];
          Tile<Element<L>> y{work.tile[i & 1], width};
          if (i + 1 == group.stages.size()) y = {to + a * rows_out * group.inner + s, group.inner};
          above /= stage.q;
          run_stage<L>(stage, x, y, above, below, width);
          below *= stage.p;
          x = {y.data, y.stride};
        }
        if (!is_last) continue;
        const int64_t first = a * rows_out * group.inner + s;
        if (width == group.inner)
          finish(first, rows_out * width);
        else
          for (int64_t r = 0; r < rows_out; ++r) finish(first + r * group.inner, width);
      }
    in = to;
  }
}
