// Gradients of the factors: K_f[p, q] = sum over lanes and all other digits of a[.., p, ..] conj(x[.., q, ..])
//
// where a is a gradient and x a vector that factor f was applied to. recurrence.cpp defines both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "lanes.h"
#include "product.h"

// Sums R x S entries in registers over `outer` and `inner`, then over the lanes, into doubles.
template <int L, int R, int S>
KRON_OUTLINE void correlate_tile(const Element<L>* a, const Element<L>* x, int64_t p, int64_t q, int64_t outer,
                    int64_t inner, double* sums) {
  Element<L> acc[R][S] = {};
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i) {
      const Element<L>* column = a + o * p * inner + i;
      const Element<L>* row = x + o * q * inner + i;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int s = 0; s < S; ++s) mac_conj(acc[r][s], column[r * inner], row[s * inner]);
    }
  Lanes<L> flat[R * S * C];
  for (int j = 0; j < R * S * C; ++j) flat[j] = acc[j / C / S][j / C % S].v[j % C];
  real totals[R * S * C];
  sum_each<L>(flat, totals);
  for (int j = 0; j < R * S * C; ++j) sums[(j / C / S * q + j / C % S) * C + j % C] += totals[j];
}

// a has shape (outer, p, inner), x (outer, q, inner); sums (p, q, C) is added to.
template <int L>
KRON_OUTLINE void correlate(const Element<L>* a, const Element<L>* x, int64_t p, int64_t q, int64_t outer,
               int64_t inner, double* sums) {
  for_row_blocks(p, [&](int64_t p0, int64_t size) {
    for (int64_t q0 = 0; q0 < q; q0 += 2) {
      const Element<L>* rows = a + p0 * inner;
      const Element<L>* columns = x + q0 * inner;
      double* to = sums + (p0 * q + q0) * C;
      const bool pair = q0 + 1 < q;
      if (size == 4 && pair) correlate_tile<L, 4, 2>(rows, columns, p, q, outer, inner, to);
      if (size == 4 && !pair) correlate_tile<L, 4, 1>(rows, columns, p, q, outer, inner, to);
      if (size == 2 && pair) correlate_tile<L, 2, 2>(rows, columns, p, q, outer, inner, to);
      if (size == 2 && !pair) correlate_tile<L, 2, 1>(rows, columns, p, q, outer, inner, to);
      if (size == 1 && pair) correlate_tile<L, 1, 2>(rows, columns, p, q, outer, inner, to);
      if (size == 1 && !pair) correlate_tile<L, 1, 1>(rows, columns, p, q, outer, inner, to);
    }
  });
}

// The off-diagonal entries K[0, 1] and K[1, 0] of B neighbouring 2x2 factors in one pass. Their lowest
// digit has `inner` elements below it. sums: two cells per factor, the lowest first.
template <int L, int B>
KRON_OUTLINE void correlate_butterflies(const Element<L>* g, const Element<L>* h, int64_t outer, int64_t inner, Element<L>* sums) {
  constexpr int R = 1 << B;
  Element<L> acc[B][2] = {};
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i) {
      const int64_t at = o * R * inner + i;
      Element<L> gradient[R];
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) gradient[j] = g[at + j * inner];
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) {
        const Element<L> state = h[at + j * inner];
#pragma GCC unroll 3
        for (int k = 0; k < B; ++k)
          mac_conj(acc[k][j >> k & 1 ? 0 : 1], gradient[j ^ 1 << k], state);
      }
    }
  for (int k = 0; k < B; ++k)
    for (int entry = 0; entry < 2; ++entry) add(sums[2 * k + entry], acc[k][entry]);
}

// Off-diagonal entries of the factors that exchange lanes: lane l of sums[k] gets g conj(h of lane l ^ 2^k).
template <int L, int D = 1>
KRON_INLINE void correlate_lanes(const Element<L>& g, const Element<L>& h, Element<L>* sums) {
  if constexpr (D < L) {
    mac_conj(*sums, g, crossed<L, D>(h));
    correlate_lanes<L, 2 * D>(g, h, sums + 1);
  }
}

// K of every factor from one pair of vectors: the gradient g = W^H delta, and the state h that W was
// applied to (all factors square). A diagonal entry of a 2x2 factor is the sum of g_n conj(h_n) over
// half of the n. These products are summed over time for each n; `finish` distributes them.
template <class Layout>
class Correlation {
  static constexpr int L = Layout::kLanes, kBits = log2_of(Layout::kUnits);

 public:
  Correlation(Arena& arena, int64_t count, const int64_t* shapes) {
    int64_t sums = 0;
    for (int64_t f = 0; f < count; ++f) units_ *= shapes[2 * f];
    std::vector<int64_t> offsets;
    for (int64_t f = 0; f < count; ++f) {
      offsets.push_back(sums);
      sums += shapes[2 * f] * shapes[2 * f] * C;
    }
    int64_t stride = 1;
    for (int64_t f = count; f-- > 0; stride *= shapes[2 * f])
      if (shapes[2 * f] == 2) pairs_.push_back({offsets[f], stride});
    size_ = units_ / Layout::kUnits;
    int64_t outer = size_, inner = 1, run = 0;
    for (int64_t f = count - kBits; f-- > 0; run = 0) {
      while (run < kMaxBits && run <= f && shapes[2 * (f - run)] == 2) ++run;
      Part part{run ? int64_t(2) : shapes[2 * f], std::max<int64_t>(run, 1), 0, inner, {}, nullptr};
      for (int64_t k = 0; k < part.bits; ++k) {
        part.offsets.push_back(offsets[f - k]);
        outer /= part.p;
        inner *= part.p;
      }
      part.outer = outer;
      if (run) part.cells = arena.sums<Element<L>>(2 * run);
      f -= part.bits - 1;
      parts_.push_back(std::move(part));
    }
    if (pairs_.empty()) return;
    if (kBits) lanes_ = arena.sums<Element<L>>(kBits);
    diagonal_ = arena.sums<Element<L>>(size_);
    products_ = arena.take<double>(C * units_);
  }

  // Adds g_n conj(h_n) for `count` elements from n on: all that depends on single elements.
  KRON_INLINE void add_products(const Element<L>* g, const Element<L>* h, int64_t n, int64_t count) const {
    if (!diagonal_) return;
    Element<L> lanes[kBits + 1] = {};
    for (int k = 0; k < kBits; ++k) lanes[k] = lanes_[k];
    for (const int64_t end = n + count; n < end; ++n) {
      mac_conj(diagonal_[n], g[n], h[n]);
      if constexpr (kBits > 0) correlate_lanes<L>(g[n], h[n], lanes);
    }
    for (int k = 0; k < kBits; ++k) lanes_[k] = lanes[k];
  }
  // Adds the rest for `steps` pairs of vectors, stored one after the other. All 2x2 factors of low digits work on
  // a piece while it is in the cache; each other factor goes over all vectors.
  void operator()(const Element<L>* g, const Element<L>* h, int64_t steps, double* sums) const {
    size_t low = 0;
    int64_t piece = 1;
    while (low < parts_.size() && parts_[low].cells &&
           parts_[low].extent() * int64_t(sizeof(Element<L>)) <= kTileBytes)
      piece = parts_[low++].extent();
    for (int64_t at = 0; low > 1 && at < size_ * steps; at += piece)
      for (size_t i = 0; i < low; ++i)
        run(parts_[i], g + at, h + at, piece / parts_[i].extent(), sums);
    for (size_t i = low > 1 ? low : 0; i < parts_.size(); ++i)
      run(parts_[i], g, h, parts_[i].outer * steps, sums);
  }
  // Adds the contents of the cells to the sums (p, q, C) of the factors.
  void finish(double* sums) const {
    if (!diagonal_) return;
    std::fill_n(products_, C * units_, 0.0);
    add_units<Layout>(diagonal_, units_, C, products_);
    for (const Pair& pair : pairs_)
      for (int c = 0; c < C; ++c)
        for (int digit = 0; digit < 2; ++digit)
          sums[pair.offset + 3 * C * digit + c] += over_half(products_ + c * units_, pair.stride, digit);
    for (const Part& part : parts_)
      for (int64_t k = 0; part.cells && k < part.bits; ++k)
        for (int c = 0; c < C; ++c) {
          double* to = sums + part.offsets[k] + c;
          to[1 * C] += sum<L>(part.cells[2 * k].v[c]);
          to[2 * C] += sum<L>(part.cells[2 * k + 1].v[c]);
        }
    for (int k = 0; k < kBits; ++k)
      for (int l = 0; l < L; ++l)
        for (int c = 0; c < C; ++c)
          sums[pairs_[k].offset + ((l >> k & 1) + 1) * C + c] += at<L>(lanes_[k].v[c], l);
  }

 private:
  struct Pair {  // a 2x2 factor, the lowest digit first
    int64_t offset, stride;  // of its sums; of its digit
  };
  struct Part {
    int64_t p, bits, outer, inner;
    std::vector<int64_t> offsets;  // of each factor's sums, the lowest digit first
    Element<L>* cells;                // null for a factor that is not 2x2
    int64_t extent() const { return cells ? inner << bits : inner * p; }
  };
  static void run(const Part& part, const Element<L>* g, const Element<L>* h, int64_t outer, double* sums) {
    if (!part.cells)
      correlate<L>(g, h, part.p, part.p, outer, part.inner, sums + part.offsets[0]);
    else if (part.bits == 3)
      correlate_butterflies<L, 3>(g, h, outer, part.inner, part.cells);
    else if (part.bits == 2)
      correlate_butterflies<L, 2>(g, h, outer, part.inner, part.cells);
    else
      correlate_butterflies<L, 1>(g, h, outer, part.inner, part.cells);
  }
  // The sum over the units whose digit, of this stride, is `digit`.
  double over_half(const double* of_units, int64_t stride, int digit) const {
    double total = 0;
    for (int64_t n = digit * stride; n < units_; n += 2 * stride)
      for (int64_t i = n; i < n + stride; ++i) total += of_units[i];
    return total;
  }
  std::vector<Pair> pairs_;
  std::vector<Part> parts_;
  int64_t units_ = 1, size_;  // size_: elements
  Element<L>*diagonal_ = nullptr, *lanes_ = nullptr;  // null if there is no 2x2 factor; sums over time
  double* products_ = nullptr;  // `diagonal_`, summed over the sequences
};

// How many steps to collect before correlating. A large factor needs one sum over the lanes per entry;
// with several steps at once, these sums stay cheap beside the products.
inline int64_t collected_steps(int64_t count, const int64_t* shapes) {
  int64_t n = 1, steps = 1;
  for (int64_t f = 0; f < count; ++f) n *= shapes[2 * f];
  for (int64_t f = 0; f < count; ++f)
    if (shapes[2 * f] > 8) steps = std::max(steps, std::min<int64_t>(16, 64 * shapes[2 * f] / n));
  return steps;
}

// One step back through the product: computes g = W^H delta, and adds the share of delta and h = h_{t-1}
// to `sums`, which are the factors' gradients or the K_f to solve for them. `sums` are complete after
// `finish`; the arena's `clear` begins the next block.
template <int L>
struct FactorGradient {
  virtual ~FactorGradient() = default;
  virtual void step(const Element<L>* delta, const Element<L>* h, Element<L>* g, double* sums) = 0;
  virtual void finish(double* sums) = 0;
};

// K of square factors, from g and h. `n` elements.
template <class Layout>
class Shortcut final : public FactorGradient<Layout::kLanes> {
  static constexpr int L = Layout::kLanes;

 public:
  Shortcut(Arena& arena, int64_t count, const int64_t* shapes, const real* data, int64_t n)
      : adjoint_(read_factors(count, shapes, data, true), sizeof(Element<L>), Layout::kUnits),
        correlation_(arena, count, shapes),
        work_(arena, {&adjoint_}),
        n_(n),
        steps_(collected_steps(count, shapes)) {
    for (auto& store : stores_) store = steps_ > 1 ? arena.take<Element<L>>(steps_ * n) : nullptr;
  }
  void step(const Element<L>* delta, const Element<L>* h, Element<L>* g, double* sums) override {
    apply<L>(adjoint_, delta, g, work_, [&](int64_t first, int64_t count) {
      for (int64_t n = first; n < first + count; ++n) g[n] = adjoint_.template finished<Layout>(g[n], n);
      correlation_.add_products(g, h, first, count);
    });
    if (steps_ == 1) return correlation_(g, h, 1, sums);
    std::copy_n(g, n_, stores_[0] + filled_ * n_);
    std::copy_n(h, n_, stores_[1] + filled_ * n_);
    if (++filled_ == steps_) flush(sums);
  }
  void finish(double* sums) override {
    flush(sums);
    correlation_.finish(sums);
  }

 private:
  void flush(double* sums) {
    if (filled_) correlation_(stores_[0], stores_[1], filled_, sums);
    filled_ = 0;
  }
  Product adjoint_;
  Correlation<Layout> correlation_;
  Workspace<L> work_;
  int64_t n_, steps_, filled_ = 0;
  Element<L>* stores_[2];
};

// dW_f itself, for factors of any shape: stage by stage forwards, then backwards.
template <int L>
class Stages final : public FactorGradient<L> {
 public:
  Stages(Arena& arena, int64_t count, const int64_t* shapes, const real* data, int64_t n)
      : steps_(collected_steps(count, shapes)) {
    const std::vector<Factor> forward = read_factors(count, shapes, data, false);
    const std::vector<Factor> adjoint = read_factors(count, shapes, data, true);
    stages_.reserve(count);
    int64_t outer = 1, inner = n, offset = 0;
    std::vector<const Product*> products;
    for (int64_t f = 0; f < count; ++f) {
      const int64_t p = shapes[2 * f], q = shapes[2 * f + 1];
      inner /= p;
      stages_.push_back({p, q, outer, inner, offset,
                         Product(forward[f], outer, inner, sizeof(Element<L>)),
                         Product(adjoint[f], outer, inner, sizeof(Element<L>)),
                         arena.take<Element<L>>(steps_ * outer * p * inner),
                         arena.take<Element<L>>(steps_ * outer * q * inner)});
      outer *= q;
      offset += p * q * C;
    }
    for (const Stage& stage : stages_) {
      products.push_back(&stage.forward);
      products.push_back(&stage.adjoint);
    }
    work_ = std::make_unique<Workspace<L>>(arena, products);
  }
  void step(const Element<L>* delta, const Element<L>* h, Element<L>* g, double* sums) override {
    const auto nothing = [](int64_t, int64_t) {};
    const Stage &first = stages_.front(), &last = stages_.back();
    std::copy_n(h, last.outer * last.q, last.input(filled_));
    for (size_t f = stages_.size() - 1; f > 0; --f)
      apply<L>(stages_[f].forward, stages_[f].input(filled_), stages_[f - 1].input(filled_), *work_,
               nothing);
    std::copy_n(delta, first.p * first.inner, first.output(filled_));
    for (size_t f = 0; f < stages_.size(); ++f)
      apply<L>(stages_[f].adjoint, stages_[f].output(filled_),
               f + 1 < stages_.size() ? stages_[f + 1].output(filled_) : g, *work_, nothing);
    if (++filled_ == steps_) finish(sums);
  }
  void finish(double* sums) override {
    for (const Stage& s : stages_)
      if (filled_)
        correlate<L>(s.outputs, s.inputs, s.p, s.q, filled_ * s.outer, s.inner, sums + s.offset);
    filled_ = 0;
  }

 private:
  struct Stage {
    int64_t p, q, outer, inner, offset;
    Product forward, adjoint;
    Element<L>*outputs, *inputs;  // gradients of the outputs (steps, outer, p, inner); inputs (.., q, ..)
    Element<L>* output(int64_t step) const { return outputs + step * outer * p * inner; }
    Element<L>* input(int64_t step) const { return inputs + step * outer * q * inner; }
  };
  int64_t steps_, filled_ = 0;
  std::vector<Stage> stages_;
  std::unique_ptr<Workspace<L>> work_;
};

// How many real numbers the factors, or their gradients, have.
inline int64_t factor_entries(int64_t count, const int64_t* shapes) {
  int64_t entries = 0;
  for (int64_t f = 0; f < count; ++f) entries += shapes[2 * f] * shapes[2 * f + 1];
  return entries * C;
}

template <class Layout>
std::unique_ptr<FactorGradient<Layout::kLanes>> factor_gradient(Arena& arena, bool shortcut, int64_t count,
                                                                const int64_t* shapes, const real* data, int64_t n) {
  if constexpr (Layout::kUnits == 1)
    if (!shortcut) return std::make_unique<Stages<Layout::kLanes>>(arena, count, shapes, data, n);
  return std::make_unique<Shortcut<Layout>>(arena, count, shapes, data, n);
}
