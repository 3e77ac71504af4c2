// The cell of an LSTM: with z_k = W_k h_{t-1} + u_k + b_k for the gates k = i, f, g, o,
//
//   i, f, o = sigmoid(z_i, z_f, z_o),   g = tanh(z_g),   c_t = f c_{t-1} + i g,   h_t = o tanh(c_t).
//
// Backwards, from gamma = dL/dh_t and the gradient of c_t from later steps, with a = tanh(c_t):
//
//   dc = (from later) + gamma o (1 - a^2)       delta_o = gamma a o (1 - o)
//   delta_i = dc g i (1 - i)                    delta_f = dc c_{t-1} f (1 - f)
//   delta_g = dc i (1 - g^2)                    to c_{t-1}: dc f
#pragma once

#include "../step.h"

static_assert(C == 1, "the LSTM is real");

struct Cell {
  static constexpr int kStates = 2, kProducts = 4, kBiases = 4;
  static constexpr bool kFromOutput = false, kIsDirect = false, kSplits = false;

  static int bias_parts(const Call&) { return 1; }

  // `from` and `to` are h and then c, N elements each.
  template <int L, class Step>
  KRON_INLINE static void step(const Step& at, int64_t n, const Element<L>* from, Element<L>* to) {
    const int64_t size = at.size;
    const Gates<L> gate = gates<L>(at, n);
    const Lanes<L> c = gate.f * from[size + n].v[0] + gate.i * gate.g;
    to[n].v[0] = gate.o * hyperbolic_tangent<L>(c);
    to[size + n].v[0] = c;
  }

  template <int L, class Step>
  KRON_INLINE static Derivative<L, Cell> derivative(const Step& at, int64_t n, const Element<L>* from,
                                                    const Element<L>*, const Element<L>* total) {
    Derivative<L, Cell> d = {};
    d.state[1] = total[1];
    const Gates<L> delta =
        backward<L>(gates<L>(at, n), from[at.size + n].v[0], total[0].v[0], d.state[1].v[0]);
    const Lanes<L> deltas[] = {delta.i, delta.f, delta.g, delta.o};
    for (int k = 0; k < kProducts; ++k) d.delta[k].v[0] = d.bias[k].v[0] = deltas[k];
    return d;
  }

 private:
  template <int L>
  struct Gates {
    Lanes<L> i, f, g, o;
  };
  template <int L>
  KRON_INLINE static Gates<L> backward(const Gates<L>& gate, Lanes<L> before, Lanes<L> gamma, Lanes<L>& d_c) {
    const Lanes<L> a = hyperbolic_tangent<L>(gate.f * before + gate.i * gate.g);
    const Lanes<L> dc = d_c + gamma * gate.o * (1 - a * a);
    d_c = dc * gate.f;
    return {dc * gate.g * gate.i * (1 - gate.i), dc * before * gate.f * (1 - gate.f),
            dc * gate.i * (1 - gate.g * gate.g), gamma * a * gate.o * (1 - gate.o)};
  }
  template <int L, class Step>
  KRON_INLINE static Gates<L> gates(const Step& at, int64_t n) {
    return {sigmoid<L>(at.pre_activation(0, n)), sigmoid<L>(at.pre_activation(1, n)),
            hyperbolic_tangent<L>(at.pre_activation(2, n)), sigmoid<L>(at.pre_activation(3, n))};
  }
};
