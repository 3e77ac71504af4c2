// y = W x for a batch of vectors, W = W_0 (x) ... (x) W_{F-1}, and the way back; product.h explains the product.
//
// Letters as in call.h. Vectors lie one after the other, complex numbers as (re, im), as torch stores them. A
// block of them are the lanes. Backwards, g = dL/dy gives dL/dx = W^H g, and gradient.h the factors' gradients.

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "blocks.h"
#include "gradient.h"
#include "interrupt.h"
#include "lanes.h"
#include "product.h"

// As kron/cpu.py lays it out: every field is eight bytes. Tensors are contiguous.
struct Call {
  int64_t threads, batch, count;
  const int64_t* shapes;  // (count, 2): P_f and Q_f
  const real* factors;    // (sum P_f Q_f, C)
  // for `forward`
  int64_t adjoint;  // 1: W^H instead of W
  const real* x;    // (B, prod Q, C), for the adjoint (B, prod P, C); for `backward`, too
  real* y;          // (B, prod P, C), or the other way round
  // for `backward`
  int64_t shortcut;   // 1: d_factors gets K_f = W_f^H dW_f; 0: dW_f itself
  const real* d_y;    // (B, prod P, C)
  real* d_x;          // (B, prod Q, C) or null
  double* d_factors;  // as factors
  // set by kernel.py
  const Interpreter* interpreter;  // or null

  int64_t rows() const { return size(0); }
  int64_t columns() const { return size(1); }
  // A thread for less work than this would take longer to start.
  int64_t useful_threads() const {
    return std::clamp<int64_t>(batch * std::max(rows(), columns()) * C / 65536, 1, threads);
  }

 private:
  int64_t size(int axis) const {
    int64_t size = 1;
    for (int64_t f = 0; f < count; ++f) size *= shapes[2 * f + axis];
    return size;
  }
};

namespace {

// The block's vectors of n numbers to elements. With one vector in each lane, the parts of a complex number need
// no work of their own: each is a vector of lanes, in the order of the parts in memory.
template <int L>
KRON_OUTLINE void load_vectors(const real* from, const Block& block, int64_t n, Element<L>* to, OfSequences<L>) {
  const real* first = from + block.begin * C * n;
  int64_t i = 0;
  if constexpr (L > 1)
    for (; i + L <= C * n; i += L) {
      Lanes<L> square[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) square[l] = get<L>(first + l * C * n + i);
      transpose<L>(square);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) to[(i + l) / C].v[(i + l) % C] = square[l];
    }
  for (; i < C * n; ++i) {
    real a[L];
    for (int l = 0; l < L; ++l) a[l] = first[l * C * n + i];
    to[i / C].v[i % C] = get<L>(a);
  }
}
// The reverse.
template <int L>
KRON_OUTLINE void store_vectors(const Element<L>* from, const Block& block, int64_t n, real* to, OfSequences<L>) {
  constexpr int kSquare = std::max(L / C, 1);  // elements whose parts fill a square
  real* first = to + block.begin * C * n;
  int64_t at = 0;
  if constexpr (L > 1)
    for (; at + kSquare <= n; at += kSquare) {
      Lanes<L> square[L];
#pragma GCC unroll 16
      for (int j = 0; j < kSquare; ++j)
        for (int c = 0; c < C; ++c) square[C * j + c] = from[at + j].v[c];
      transpose<L>(square);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) put<L>(first + (l * n + at) * C, square[l]);
    }
  for (; at < n; ++at)
    for (int c = 0; c < C; ++c) {
      real a[L];
      put<L>(a, from[at].v[c]);
      for (int l = 0; l < L; ++l) first[(l * n + at) * C + c] = a[l];
    }
}

// With L numbers of one vector in the lanes, real and imaginary parts are put apart, and together again.
using Wide = Lanes<kWide>;
template <int... I>
KRON_INLINE Element<kWide> apart(Wide a, Wide b, std::integer_sequence<int, I...>) {
  Element<kWide> parts;
  parts.v[0] = __builtin_shufflevector(a, b, (2 * I)...);
  parts.v[C - 1] = __builtin_shufflevector(a, b, (2 * I + 1)...);
  return parts;
}
template <int First, int... I>
KRON_INLINE Wide together(Wide re, Wide im, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(re, im, (First + I / 2 + I % 2 * kWide)...);
}
inline void load_vectors(const real* from, const Block& block, int64_t n, Element<kWide>* to, OfUnits) {
  const real* first = from + block.begin * C * n;
  for (int64_t i = 0; i < n / kWide; ++i, first += C * kWide)
    if constexpr (C == 1)
      to[i].v[0] = get<kWide>(first);
    else
      to[i] = apart(get<kWide>(first), get<kWide>(first + kWide), std::make_integer_sequence<int, kWide>());
}
inline void store_vectors(const Element<kWide>* from, const Block& block, int64_t n, real* to, OfUnits) {
  real* first = to + block.begin * C * n;
  constexpr std::make_integer_sequence<int, kWide> kLanes;
  for (int64_t i = 0; i < n / kWide; ++i, first += C * kWide) {
    const Wide re = from[i].v[0], im = from[i].v[C - 1];
    put<kWide>(first, C == 1 ? re : together<0>(re, im, kLanes));
    if (C == 2) put<kWide>(first + kWide, together<kWide / 2>(re, im, kLanes));
  }
}

template <class Layout>
class Forward {
  static constexpr int L = Layout::kLanes, kUnits = Layout::kUnits;

 public:
  explicit Forward(const Call& call)
      : call_(call),
        inputs_(call.adjoint ? call.rows() : call.columns()),
        outputs_(call.adjoint ? call.columns() : call.rows()),
        product_(read_factors(call.count, call.shapes, call.factors, call.adjoint), sizeof(Element<L>), kUnits),
        work_(arena_, {&product_}),
        x_(arena_.take<Element<L>>(inputs_ / kUnits)),
        y_(arena_.take<Element<L>>(outputs_ / kUnits)) {}

  void run(const Block& block, Pace& pace) {
    if (pace.stop(inputs_ / kUnits)) return;
    load_vectors(call_.x, block, inputs_, x_, Layout());
    apply<L>(product_, x_, y_, work_, [&](int64_t first, int64_t count) {
      for (int64_t n = first; n < first + count; ++n) y_[n] = product_.template finished<Layout>(y_[n], n);
    });
    store_vectors(y_, block, outputs_, call_.y, Layout());
  }

 private:
  const Call& call_;
  Arena arena_;
  const int64_t inputs_, outputs_;
  const Product product_;
  Workspace<L> work_;
  Element<L>*const x_, *const y_;
};

// Sums in single precision over so many vectors, then in double.
constexpr int64_t kVectors = 512;

template <class Layout>
class Backward {
  static constexpr int L = Layout::kLanes, kUnits = Layout::kUnits;
  static constexpr int64_t kBlocks = kVectors / Layout::kSequences;

 public:
  // `blocks` is how many blocks this worker will get.
  Backward(const Call& call, int64_t blocks, double* sums)
      : call_(call),
        sums_(sums),
        left_(blocks),
        rows_(call.rows()),
        columns_(call.columns()),
        gradient_(factor_gradient<Layout>(arena_, call.shortcut, call.count, call.shapes, call.factors,
                                          rows_ / kUnits)),
        d_y_(arena_.take<Element<L>>(rows_ / kUnits)),
        x_(arena_.take<Element<L>>(columns_ / kUnits)),
        d_x_(arena_.take<Element<L>>(columns_ / kUnits)) {}

  void run(const Block& block, Pace& pace) {
    if (pace.stop(rows_ / kUnits)) return;
    load_vectors(call_.d_y, block, rows_, d_y_, Layout());
    load_vectors(call_.x, block, columns_, x_, Layout());
    gradient_->step(d_y_, x_, d_x_, sums_);
    if (call_.d_x) store_vectors(d_x_, block, columns_, call_.d_x, Layout());
    if (--left_ % kBlocks != 0) return;
    gradient_->finish(sums_);
    arena_.clear();
  }

 private:
  const Call& call_;
  double* const sums_;
  int64_t left_;
  const int64_t rows_, columns_;
  Arena arena_;
  std::unique_ptr<FactorGradient<L>> gradient_;
  Element<L>*const d_y_, *const x_, *const d_x_;
};

Shares shares(const Call& call, bool can_be_units) {
  return Shares(call.batch, call.useful_threads(),
                can_be_units && can_hold_units(call.count, call.shapes, call.factors));
}

}  // namespace

KRON_ENTRY int forward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    for_blocks<Forward>(shares(*call, true), running, [&](auto layout, int64_t) {
      return std::make_unique<Forward<decltype(layout)>>(*call);
    });
  });
}

KRON_ENTRY int backward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    const Shares shared = shares(*call, call->shortcut);
    const int64_t entries = factor_entries(call->count, call->shapes);
    std::vector<std::vector<double>> sums(std::max<int64_t>(shared.threads, 1), std::vector<double>(entries));
    for_blocks<Backward>(shared, running, [&](auto layout, int64_t thread) {
      using Layout = decltype(layout);
      int64_t blocks = 0;
      for (size_t i = thread; i < shared.blocks.size(); i += shared.threads)
        blocks += shared.blocks[i].sequences == Layout::kSequences;
      return std::make_unique<Backward<Layout>>(*call, blocks, sums[thread].data());
    });
    for (size_t thread = 1; thread < sums.size(); ++thread) add_to(sums[thread], sums[0]);
    std::copy(sums[0].begin(), sums[0].end(), call->d_factors);
  });
}
