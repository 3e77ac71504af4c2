// y = W x for a batch of vectors, W = W_0 (x) ... (x) W_{F-1}, and the way back; product.h explains the product.
//
// Letters as in call.h. Vectors lie one after the other, complex numbers as (re, im), as torch stores them. A
// block of them are the lanes. Backwards, g = dL/dy gives dL/dx = W^H g, and gradient.h the factors' gradients.

#include <algorithm>
#include <memory>
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

// The block's vectors of n elements to lanes. Complex numbers need no work of their own: each part of an
// element is a vector of lanes, in the order of the parts in memory.
template <int L>
KRON_OUTLINE void load_vectors(const real* from, const Block& block, int64_t n, Element<L>* to) {
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

// The reverse, with each element multiplied by its entry of `diagonal`, if there is one.
template <int L>
KRON_OUTLINE void store_vectors(const Element<L>* from, const Coef* diagonal, const Block& block, int64_t n,
                                real* to) {
  constexpr int kSquare = std::max(L / C, 1);  // elements whose parts fill a square
  real* first = to + block.begin * C * n;
  const auto scaled = [&](int64_t at) {
    if (!diagonal) return from[at];
    Element<L> product = {};
    mac(product, splat<L>(diagonal[at]), from[at]);
    return product;
  };
  int64_t at = 0;
  if constexpr (L > 1)
    for (; at + kSquare <= n; at += kSquare) {
      Lanes<L> square[L];
#pragma GCC unroll 16
      for (int j = 0; j < kSquare; ++j) {
        const Element<L> element = scaled(at + j);
        for (int c = 0; c < C; ++c) square[C * j + c] = element.v[c];
      }
      transpose<L>(square);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) put<L>(first + (l * n + at) * C, square[l]);
    }
  for (; at < n; ++at) {
    const Element<L> element = scaled(at);
    for (int c = 0; c < C; ++c) {
      real a[L];
      put<L>(a, element.v[c]);
      for (int l = 0; l < L; ++l) first[(l * n + at) * C + c] = a[l];
    }
  }
}

template <int L>
class Forward {
 public:
  explicit Forward(const Call& call)
      : call_(call),
        inputs_(call.adjoint ? call.rows() : call.columns()),
        outputs_(call.adjoint ? call.columns() : call.rows()),
        product_(read_factors(call.count, call.shapes, call.factors, call.adjoint), sizeof(Element<L>)),
        work_(arena_, {&product_}),
        x_(arena_.take<Element<L>>(inputs_)),
        y_(arena_.take<Element<L>>(outputs_)) {}

  void run(const Block& block, Pace& pace) {
    if (pace.stop(inputs_)) return;
    load_vectors<L>(call_.x, block, inputs_, x_);
    apply<L>(product_, x_, y_, work_, [](int64_t, int64_t) {});
    store_vectors<L>(y_, product_.diagonal(), block, outputs_, call_.y);
  }

 private:
  const Call& call_;
  Arena arena_;
  const int64_t inputs_, outputs_;
  const Product product_;
  Workspace<L> work_;
  Element<L>*const x_, *const y_;
};

// Sums in single precision over so many blocks, then in double.
constexpr int64_t kBlocks = 32;

template <int L>
class Backward {
 public:
  // `blocks` is how many blocks this worker will get.
  Backward(const Call& call, int64_t blocks, double* sums)
      : call_(call),
        sums_(sums),
        left_(blocks),
        rows_(call.rows()),
        columns_(call.columns()),
        gradient_(factor_gradient<L>(arena_, call.shortcut, call.count, call.shapes, call.factors, rows_)),
        d_y_(arena_.take<Element<L>>(rows_)),
        x_(arena_.take<Element<L>>(columns_)),
        d_x_(arena_.take<Element<L>>(columns_)) {}

  void run(const Block& block, Pace& pace) {
    if (pace.stop(rows_)) return;
    load_vectors<L>(call_.d_y, block, rows_, d_y_);
    load_vectors<L>(call_.x, block, columns_, x_);
    gradient_->step(d_y_, x_, d_x_, sums_);
    if (call_.d_x) store_vectors<L>(d_x_, nullptr, block, columns_, call_.d_x);
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

}  // namespace

extern "C" int forward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    use_huge_pages(call->y, call->batch * (call->adjoint ? call->columns() : call->rows()) * sizeof(Coef));
    for_blocks<Forward>(Shares(call->batch, call->useful_threads()), running, [&](auto width, int64_t) {
      return std::make_unique<Forward<decltype(width)::value>>(*call);
    });
  });
}

extern "C" int backward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    use_huge_pages(call->d_x, call->batch * call->columns() * sizeof(Coef));
    const Shares shares(call->batch, call->useful_threads());
    const int64_t entries = factor_entries(call->count, call->shapes);
    std::vector<std::vector<double>> sums(std::max<int64_t>(shares.threads, 1), std::vector<double>(entries));
    for_blocks<Backward>(shares, running, [&](auto width, int64_t thread) {
      constexpr int L = decltype(width)::value;
      int64_t blocks = 0;
      for (size_t i = thread; i < shares.blocks.size(); i += shares.threads) blocks += shares.blocks[i].lanes == L;
      return std::make_unique<Backward<L>>(*call, blocks, sums[thread].data());
    });
    for (size_t thread = 1; thread < sums.size(); ++thread) add_to(sums[thread], sums[0]);
    std::copy(sums[0].begin(), sums[0].end(), call->d_factors);
  });
}
