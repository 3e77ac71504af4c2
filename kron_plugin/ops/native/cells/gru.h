// The cell of a GRU: with w_k = W_k h_{t-1} and the biases b_r, b_z, b_n, b_h,
//
//   r, z = sigmoid(w_r + u_r + b_r, w_z + u_z + b_z),   v = w_n + b_h,   n = tanh(u_n + b_n + r v),
//   h_t = (1 - z) n + z h_{t-1}.
//
// Backwards, from gamma = dL/dh_t:
//
//   d_n = gamma (1 - z) (1 - n^2)    to u_n and b_n; r d_n to w_n and b_h
//   d_r = d_n v r (1 - r)            d_z = gamma (h_{t-1} - n) z (1 - z)
//   to h_{t-1}, without the products: gamma z
#pragma once

#include "../step.h"

static_assert(C == 1, "the GRU is real");

struct Cell {
  static constexpr int kStates = 1, kProducts = 3, kBiases = 4, kParts = 4;
  static constexpr bool kFromOutput = false, kIsDirect = true, kSplits = true;

  static int bias_parts(const Call&) { return 1; }

  // The parts are r, z, v and n.
  template <int L, class Step>
  KRON_INLINE static void prepare(Step& at, int64_t first, int64_t count, const Element<L>*) {
    const auto u = [&](int k, int64_t i) {
      Element<L> sum = {};
      at.input.add_to(sum, k * at.size + i);
      return sum.v[0] + at.bias(k, i);
    };
    for (int k = 0; k < 2; ++k)
      for (int64_t i = first; i < first + count; ++i) at.part(k, i) = sigmoid<L>(at.part(k, i) + u(k, i));
    for (int64_t i = first; i < first + count; ++i) {
      at.part(2, i) += at.bias(3, i);
      at.part(3, i) = hyperbolic_tangent<L>(u(2, i) + at.part(0, i) * at.part(2, i));
    }
  }

  template <int L, class Step>
  KRON_INLINE static void step(const Step& at, int64_t i, const Element<L>* from, Element<L>* to) {
    const Lanes<L> z = at.part(1, i), n = at.part(3, i);
    to[i].v[0] = (1 - z) * n + z * from[i].v[0];
  }

  template <int L, class Step>
  KRON_INLINE static Derivative<L, Cell> derivative(const Step& at, int64_t i, const Element<L>* from,
                                                    const Element<L>*, const Element<L>* total) {
    const Lanes<L> r = at.part(0, i), z = at.part(1, i), v = at.part(2, i), n = at.part(3, i);
    const Lanes<L> gamma = total[0].v[0], d_n = gamma * (1 - z) * (1 - n * n);
    Derivative<L, Cell> d = {};
    d.state[0].v[0] = gamma * z;
    d.delta[0].v[0] = d_n * v * r * (1 - r);
    d.delta[1].v[0] = gamma * (from[i].v[0] - n) * z * (1 - z);
    d.delta[2].v[0] = d_n * r;
    for (int k = 0; k < kProducts; ++k) d.input[k] = d.bias[k] = d.delta[k];
    d.input[2].v[0] = d.bias[2].v[0] = d_n;
    d.bias[3] = d.delta[2];
    return d;
  }
};
