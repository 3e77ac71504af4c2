// The cell of a KRU: h_t = sigma(z_t; b) with z_t = W h_{t-1} + u_t.
//
// Backwards, gamma = dL/dh_t gives delta = dL/dz_t by h_t alone, no z_t is needed:
//   identity  delta = gamma
//   tanh      delta = (1 - h^2) gamma
//   modReLU   h = (|z| + b) z/|z|, so z has the direction d = h/|h| and |z| = |h| - b where h != 0,
//             and delta = (|h|/|z|) gamma - (b/|z|) d Re(conj(d) gamma), db = Re(conj(d) gamma).
//             Where h = 0 all are 0 (so they are, too, where |h| |z| is below the smallest normal).
#pragma once

#include <algorithm>
#include <limits>

#include "../step.h"

enum Activation : int64_t { kModrelu, kTanh, kIdentity };

struct Cell {
  static constexpr int kStates = 1, kProducts = 1, kBiases = 1;
  static constexpr bool kFromOutput = true, kIsDirect = false, kSplits = false;

  // Numbers in an entry of the bias.
  static int bias_parts(const Call& call) { return call.activation == kModrelu ? 1 : C; }

  template <int L, class Step>
  KRON_INLINE static void step(const Step& at, int64_t n, const Element<L>*, Element<L>* h) {
    Element<L> z = at.recurrent(0, n);
    at.input.add_to(z, n);
    activate(at.call, z, n);
    h[n] = z;
  }

  template <int L, class Step>
  KRON_INLINE static Derivative<L, Cell> derivative(const Step& at, int64_t n, const Element<L>*,
                                                    const Element<L>* h, const Element<L>* gamma) {
    Derivative<L, Cell> d = {};
    d.delta[0] = gamma[0];
    activate_backward(at.call, d.delta[0], h[n], n, d.bias[0]);
    return d;
  }

 private:
  template <int L>
  KRON_INLINE static void activate(const Call& call, Element<L>& z, int64_t n) {
    if (call.activation == kModrelu) {
      const Lanes<L> modulus = square_root<L>(dot(z, z));
      Lanes<L> moved = modulus + call.bias[n];
      moved = moved < 0 ? Lanes<L>{} : moved;  // a NaN stays one
      const Lanes<L> scale = modulus == 0 ? Lanes<L>{} : moved / modulus;
      for (int c = 0; c < C; ++c) z.v[c] *= scale;
      return;
    }
    for (int c = 0; c < C; ++c) z.v[c] += call.bias[c * call.size + n];
    if (call.activation == kTanh) z.v[0] = hyperbolic_tangent<L>(z.v[0]);
  }

  // From gamma to delta, in place, and to the bias gradient.
  template <int L>
  KRON_INLINE static void activate_backward(const Call& call, Element<L>& gamma, const Element<L>& h,
                                            int64_t n, Element<L>& d_bias) {
    if (C == 1 && call.activation == kModrelu) {  // in one dimension all of gamma is along d
      const Lanes<L> zero{}, one = splat<L>(1);
      gamma.v[0] = h.v[0] == zero ? zero : gamma.v[0];
      d_bias.v[0] = gamma.v[0] * (h.v[0] < zero ? -one : one);
      return;
    }
    if (call.activation == kModrelu) {
      constexpr real kLeast = sizeof(real) == 4 ? real(1.2e-38) : real(2.3e-308);
      constexpr real kDigit = sizeof(real) == 4 ? real(6e-8) : real(1.1e-16);
      const real most = std::numeric_limits<real>::max(), bias = std::max(call.bias[n], -most);  // not -inf
      const Lanes<L> modulus = square_root<L>(dot(h, h));
      Lanes<L> before = modulus - bias;  // |z|, which rounding may take to 0 but not below
      const Lanes<L> floor = kDigit * modulus;
      before = before < floor ? floor : before;
      const auto dead = modulus * before < splat<L>(kLeast);
      const Lanes<L> inverse = 1 / (modulus * before);
      const Lanes<L> per_modulus = dead ? Lanes<L>{} : inverse * before;
      const Lanes<L> per_before = dead ? Lanes<L>{} : inverse * modulus;
      const Lanes<L> radial = dot(gamma, h) * per_modulus;
      const Lanes<L> stretch = modulus * per_before;
      const Lanes<L> along = bias * per_before * radial * per_modulus;
      for (int c = 0; c < C; ++c) gamma.v[c] = stretch * gamma.v[c] - along * h.v[c];
      d_bias.v[0] = radial;
      return;
    }
    if (call.activation == kTanh) gamma.v[0] *= 1 - h.v[0] * h.v[0];
    d_bias = gamma;
  }
};
