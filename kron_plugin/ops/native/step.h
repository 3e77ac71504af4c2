// One step of any recurrence for a block of lanes. `struct Cell` in a cell's header is the cell's own
// part; `Step` computes what all cells need, W_k h and u_t.
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "call.h"
#include "product.h"

// Units that a cell works on at a time, so that what it makes of them stays in the first-level cache.
constexpr int64_t kChunk = 16;

// The gradients of a step at one unit: of the state before it, without the way through the products; of
// W_k h; of u, if that is another one (`kSplits`); and of the bias.
template <int L, class Cell>
struct Derivative {
  Element<L> state[Cell::kStates], delta[Cell::kProducts], input[Cell::kProducts], bias[Cell::kBiases];
};

// The start of each product's factors in `shapes` and in `factors`.
struct ProductFactors {
  const int64_t* shapes;
  int64_t count, offset;
};
inline std::vector<ProductFactors> product_factors(const Call& call, int products) {
  std::vector<ProductFactors> all;
  const int64_t* shapes = call.shapes;
  int64_t offset = 0;
  for (int k = 0; k < products; ++k) {
    all.push_back({shapes, call.counts[k], offset});
    for (int64_t f = 0; f < call.counts[k]; ++f, shapes += 2) offset += shapes[0] * shapes[1] * C;
  }
  return all;
}

// Whether the lanes of a call hold units. Both passes ask, because the kept states depend on it.
inline bool by_units(const Call& call, int products) {
  const std::vector<ProductFactors> all = product_factors(call, products);
  return !call.in_sequences && std::all_of(all.begin(), all.end(), [&](const ProductFactors& of) {
    return can_hold_units(of.count, of.shapes, call.factors + of.offset);
  });
}

template <class Layout, class Cell>
class Step {
  static constexpr int L = Layout::kLanes, K = Cell::kProducts;
  static_assert(C == 1 || K == 1, "only a cell of one product can be complex");

 public:
  Step(const Call& c, Arena& arena)
      : call(c),
        size(c.size / Layout::kUnits),
        lengths(c.lengths, c.steps),
        input(c.input(K), arena),
        products_(products(c)),
        work_(arena, pointers(products_)),
        parts_(K > 1 ? arena.take<Element<L>>(Cell::kParts * size) : nullptr) {}

  const Call& call;
  const int64_t size;  // elements of a part of the state
  Lengths<Layout> lengths;
  Input<Layout> input;

  void begin(const Block& block) {
    lengths.begin(block);
    input.begin(block);
  }
  // Call this before `part`, with the state before step t. A single product is written to `to`, several
  // products to another buffer. finish(n, count) is called as soon as all is ready for the units
  // n..n+count-1, a few at a time.
  template <class Finish>
  KRON_INLINE void read(int64_t t, const Element<L>* from, Element<L>* to, Finish finish) {
    input.read(t);
    if (K == 1) parts_ = to;
    for (int k = 0; k < K; ++k)
      apply<L>(products_[k], from, parts_ + k * size, work_, [&](int64_t first, int64_t count) {
        if (k < K - 1) return;
        for (int64_t n = first; n < first + count; n += kChunk) {
          const int64_t some = std::min(kChunk, first + count - n);
          for (int j = 0; j < K; ++j) complete(j, n, some);
          Cell::template prepare<L>(*this, n, some, from);
          finish(n, some);
        }
      });
  }
  // Element n of a part. Parts are the W_k h + u_k, or W_k h alone if the cell splits them, and then what the
  // cell makes of them.
  KRON_INLINE Lanes<L>& part(int k, int64_t n) { return parts_[k * size + n].v[0]; }
  KRON_INLINE Lanes<L> part(int k, int64_t n) const { return parts_[k * size + n].v[0]; }
  // The k-th number of each unit in the bias
  KRON_INLINE Lanes<L> bias(int k, int64_t n) const { return Layout::of_units(call.bias + k * call.size, n); }
  // Computes the next state; in a lane that has ended, the state stays. It is not inlined, so that a state
  // computed again has the same bits: in two inlined copies the compiler may fuse different products into
  // multiply-adds.
  KRON_OUTLINE void operator()(int64_t t, const Element<L>* from, Element<L>* to) {
    const auto live = lengths.live(t);
    read(t, from, to, [&](int64_t first, int64_t count) {
      for (int64_t n = first; n < first + count; ++n) {
        Cell::template step<L>(*this, n, from, to);
        for (int s = 0; lengths.given && s < Cell::kStates; ++s) {
          const int64_t at = s * size + n;
          for (int c = 0; c < C; ++c) to[at].v[c] = live ? to[at].v[c] : from[at].v[c];
        }
      }
    });
  }

 private:
  // Short loops: a processor then begins several elements before the first is done.
  KRON_INLINE void complete(int k, int64_t first, int64_t count) {
    Element<L>* const product = parts_ + k * size;
    for (int64_t n = first; n < first + count; ++n)
      product[n] = products_[k].template finished<Layout>(product[n], n);
    for (int64_t n = first; !Cell::kSplits && n < first + count; ++n) input.add_to(product[n], k * size + n);
  }
  static std::vector<Product> products(const Call& call) {
    std::vector<Product> all;
    for (const ProductFactors& of : product_factors(call, K))
      all.emplace_back(read_factors(of.count, of.shapes, call.factors + of.offset, false),
                       sizeof(Element<L>), Layout::kUnits);
    return all;
  }
  static std::vector<const Product*> pointers(const std::vector<Product>& products) {
    std::vector<const Product*> all;
    for (const Product& product : products) all.push_back(&product);
    return all;
  }

  const std::vector<Product> products_;
  Workspace<L> work_;
  Element<L>* parts_;
};
