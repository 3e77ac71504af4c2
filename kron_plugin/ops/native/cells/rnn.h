// The cell of a KRU: h_t = sigma(z_t; b) with z_t = W h_{t-1} + u_t.
#pragma once

#include <algorithm>
#include <limits>

#include "../step.h"

// A nonlinearity. `activate` turns z into h in place. `derive` turns gamma = dL/dh into delta = dL/dz in place,
// from h alone, and returns the gradient of the bias. With `kMovesModuli` an entry of the bias is real.

// h = (|z| + b) z/|z|, so z has the direction d = h/|h| and |z| = |h| - b where h != 0, and
// delta = (|h|/|z|) gamma - (b/|z|) d Re(conj(d) gamma), db = Re(conj(d) gamma). All are 0 where
// h = 0, or where |h| |z| is below the smallest normal number.
struct Modrelu {
  static constexpr bool kMovesModuli = true;

  template <int L>
  KRON_INLINE static void activate(Element<L>& z, const Coef& bias) {
    const Lanes<L> modulus = square_root<L>(dot(z, z));
    Lanes<L> moved = modulus + bias.v[0];
    moved = moved < 0 ? Lanes<L>{} : moved;  // NaN stays NaN
    const Lanes<L> scale = modulus == 0 ? Lanes<L>{} : moved / modulus;
    for (int c = 0; c < C; ++c) z.v[c] *= scale;
  }
  template <int L>
  KRON_INLINE static Element<L> derive(Element<L>& gamma, const Element<L>& h, const Coef& bias) {
    Element<L> d_bias = {};
    if constexpr (C == 1) {  // in one dimension all of gamma is along d
      const Lanes<L> zero{}, one = splat<L>(1);
      gamma.v[0] = h.v[0] == zero ? zero : gamma.v[0];
      d_bias.v[0] = gamma.v[0] * (h.v[0] < zero ? -one : one);
      return d_bias;
    }
    constexpr real kLeast = sizeof(real) == 4 ? real(1.2e-38) : real(2.3e-308);
    constexpr real kDigit = sizeof(real) == 4 ? real(6e-8) : real(1.1e-16);
    const real b = std::max(bias.v[0], -std::numeric_limits<real>::max());  // not -inf
    const Lanes<L> modulus = square_root<L>(dot(h, h));
    Lanes<L> of_z = modulus - b;  // |z|; rounding may make it 0, but not negative
    const Lanes<L> floor = kDigit * modulus;
    of_z = of_z < floor ? floor : of_z;
    const auto dead = modulus * of_z < splat<L>(kLeast);
    const Lanes<L> inverse = 1 / (modulus * of_z);
    const Lanes<L> per_modulus = dead ? Lanes<L>{} : inverse * of_z;
    const Lanes<L> per_of_z = dead ? Lanes<L>{} : inverse * modulus;
    const Lanes<L> radial = dot(gamma, h) * per_modulus;
    const Lanes<L> stretch = modulus * per_of_z;
    const Lanes<L> along = b * per_of_z * radial * per_modulus;
    for (int c = 0; c < C; ++c) gamma.v[c] = stretch * gamma.v[c] - along * h.v[c];
    d_bias.v[0] = radial;
    return d_bias;
  }
};

// h = z + b, delta = db = gamma.
struct Identity {
  static constexpr bool kMovesModuli = false;

  template <int L>
  KRON_INLINE static void activate(Element<L>& z, const Coef& bias) {
    for (int c = 0; c < C; ++c) z.v[c] += bias.v[c];
  }
  template <int L>
  KRON_INLINE static Element<L> derive(Element<L>& gamma, const Element<L>&, const Coef&) {
    return gamma;
  }
};

// h = tanh(z + b), delta = db = (1 - h^2) gamma, for real numbers.
struct Tanh : Identity {
  template <int L>
  KRON_INLINE static void activate(Element<L>& z, const Coef& bias) {
    Identity::activate(z, bias);
    z.v[0] = hyperbolic_tangent<L>(z.v[0]);
  }
  template <int L>
  KRON_INLINE static Element<L> derive(Element<L>& gamma, const Element<L>& h, const Coef&) {
    gamma.v[0] *= 1 - h.v[0] * h.v[0];
    return gamma;
  }
};

// use(sigma) with the nonlinearity of a call, in the order of ACTIVATIONS in ops/cells/rnn.py.
template <class Use>
KRON_INLINE auto with_activation(const Call& call, Use use) {
  if (call.activation == 0) return use(Modrelu());
  if (call.activation == 1) return use(Tanh());
  return use(Identity());
}

struct Cell {
  static constexpr int kStates = 1, kProducts = 1, kBiases = 1;
  static constexpr bool kFromOutput = true, kIsDirect = false, kSplits = false;

  // Numbers in an entry of the bias.
  static int bias_parts(const Call& call) {
    return with_activation(call, [](auto sigma) { return sigma.kMovesModuli ? 1 : C; });
  }

  template <int L, class Step>
  KRON_INLINE static void step(const Step& at, int64_t n, const Element<L>*, Element<L>* h) {
    Element<L> z = at.recurrent(0, n);
    at.input.add_to(z, n);
    with_activation(at.call, [&](auto sigma) { sigma.activate(z, bias_of(at.call, sigma, n)); });
    h[n] = z;
  }

  template <int L, class Step>
  KRON_INLINE static Derivative<L, Cell> derivative(const Step& at, int64_t n, const Element<L>*,
                                                    const Element<L>* h, const Element<L>* gamma) {
    Derivative<L, Cell> d = {};
    d.delta[0] = gamma[0];
    with_activation(at.call, [&](auto sigma) {
      d.bias[0] = sigma.derive(d.delta[0], h[n], bias_of(at.call, sigma, n));
    });
    return d;
  }

 private:
  template <class Sigma>
  KRON_INLINE static Coef bias_of(const Call& call, Sigma, int64_t n) {
    Coef bias = {};
    for (int c = 0; c < (Sigma::kMovesModuli ? 1 : C); ++c) bias.v[c] = call.bias[c * call.size + n];
    return bias;
  }
};
