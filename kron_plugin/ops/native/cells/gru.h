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
  static constexpr int kStates = 1, kProducts = 3, kBiases = 4;
  static constexpr bool kFromOutput = false, kIsDirect = true, kSplits = true;

  static int bias_parts(const Call&) { return 1; }

  template <int L, class Step>
  KRON_INLINE static void step(const Step& at, int64_t n, const Element<L>* from, Element<L>* to) {
    const Gates<L> gate = gates<L>(at, n);
    to[n].v[0] = (1 - gate.z) * gate.n + gate.z * from[n].v[0];
  }

  template <int L, class Step>
  KRON_INLINE static Derivative<L, Cell> derivative(const Step& at, int64_t n, const Element<L>* from,
                                                    const Element<L>*, const Element<L>* total) {
    const Gates<L> gate = gates<L>(at, n);
    const Lanes<L> gamma = total[0].v[0], d_n = gamma * (1 - gate.z) * (1 - gate.n * gate.n);
    Derivative<L, Cell> d = {};
    d.state[0].v[0] = gamma * gate.z;
    d.delta[0].v[0] = d_n * gate.v * gate.r * (1 - gate.r);
    d.delta[1].v[0] = gamma * (from[n].v[0] - gate.n) * gate.z * (1 - gate.z);
    d.delta[2].v[0] = d_n * gate.r;
    for (int k = 0; k < kProducts; ++k) d.input[k] = d.bias[k] = d.delta[k];
    d.input[2].v[0] = d.bias[2].v[0] = d_n;
    d.bias[3] = d.delta[2];
    return d;
  }

 private:
  template <int L>
  struct Gates {
    Lanes<L> r, z, v, n;
  };
  template <int L, class Step>
  KRON_INLINE static Gates<L> gates(const Step& at, int64_t n) {
        const Lanes<L> r = sigmoid<L>(at.pre_activation(0, n)), z = sigmoid<L>(at.pre_activation(1, n));
    const Lanes<L> v = at.recurrent(2, n).v[0] + at.bias(3, n);
    Element<L> u = {};
    at.input.add_to(u, 2 * at.size + n);
    return {r, z, v, hyperbolic_tangent<L>(u.v[0] + at.bias(2, n) + r * v)};
  }
};
