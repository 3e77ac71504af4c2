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
  static constexpr int kStates = 2, kProducts = 4, kBiases = 4, kParts = 5;
  static constexpr bool kFromOutput = false, kIsDirect = false, kSplits = false;

  static int bias_parts(const Call&) { return 1; }

  // The parts are i, f, g, o and tanh(c_t). `from` and `to` are h and then c, N elements each.
  template <int L, class Step>
  KRON_INLINE static void prepare(Step& at, int64_t first, int64_t count, const Element<L>* from) {
    for (int k = 0; k < kProducts; ++k)
      for (int64_t n = first; n < first + count; ++n) {
        const Lanes<L> z = at.part(k, n) + at.bias(k, n);
        at.part(k, n) = k == 2 ? hyperbolic_tangent<L>(z) : sigmoid<L>(z);
      }
    for (int64_t n = first; n < first + count; ++n) at.part(4, n) = hyperbolic_tangent<L>(memory<L>(at, n, from));
  }

  template <int L, class Step>
  KRON_INLINE static void step(const Step& at, int64_t n, const Element<L>* from, Element<L>* to) {
    to[n].v[0] = at.part(3, n) * at.part(4, n);
    to[at.size + n].v[0] = memory<L>(at, n, from);
  }

  template <int L, class Step>
  KRON_INLINE static Derivative<L, Cell> derivative(const Step& at, int64_t n, const Element<L>* from,
                                                    const Element<L>*, const Element<L>* total) {
    const Lanes<L> i = at.part(0, n), f = at.part(1, n), g = at.part(2, n), o = at.part(3, n), a = at.part(4, n);
    const Lanes<L> gamma = total[0].v[0], d_c = total[1].v[0] + gamma * o * (1 - a * a);
    const Lanes<L> deltas[] = {d_c * g * i * (1 - i), d_c * from[at.size + n].v[0] * f * (1 - f),
                               d_c * i * (1 - g * g), gamma * a * o * (1 - o)};
    Derivative<L, Cell> d = {};
    d.state[1].v[0] = d_c * f;
    for (int k = 0; k < kProducts; ++k) d.delta[k].v[0] = d.bias[k].v[0] = deltas[k];
    return d;
  }

 private:
  // c_t
  template <int L, class Step>
  KRON_INLINE static Lanes<L> memory(const Step& at, int64_t n, const Element<L>* from) {
    return at.part(1, n) * from[at.size + n].v[0] + at.part(0, n) * at.part(2, n);
  }
};
