// The cell of a KRU: h_t = sigma(z_t; b) with z_t = W h_{t-1} + u_t.
#pragma once

#include <limits>

#include "../step.h"

// A nonlinearity. `activate` turns z into h in place. `derive` turns gamma = dL/dh into delta = dL/dz in place,
// from h alone, and returns the gradient of the bias. With `kMovesModuli` an entry of the bias is real.

// h = (|z| + b) z/|z| = relu(1 + b/|z|) z, so z has the direction d = h/|h| and |z| = |h| - b where h != 0, and
// delta = (|h|/|z|) gamma - (b/|z|) d Re(conj(d) gamma), db = Re(conj(d) gamma). All are 0 where h = 0, or
// where |h| |z| is below the smallest normal number. A modulus below its root counts as it.
struct Modrelu {
  static constexpr bool kMovesModuli = true;

  template <int L>
  KRON_INLINE static void activate(Element<L>& z, const Element<L>& bias) {
    const Lanes<L> zero{};
    if constexpr (C == 1) {
      const Lanes<L> moved = (z.v[0] < zero ? -z.v[0] : z.v[0]) + bias.v[0];
      const Lanes<L> h = moved < zero ? zero : moved;  // NaN stays NaN
      z.v[0] = z.v[0] == zero ? zero : z.v[0] < zero ? -h : h;
      return;
    }
    const Lanes<L> squared = dot(z, z);
    Lanes<L> scale = 1 + bias.v[0] * inverse_root<L>(squared);
    scale = scale < zero ? zero : scale;
    scale += zero * squared;  // NaN if that is not finite
    for (int c = 0; c < C; ++c) z.v[c] *= scale;
  }
  template <int L>
  KRON_INLINE static Element<L> derive(Element<L>& gamma, const Element<L>& h, const Element<L>& bias) {
    Element<L> d_bias = {};
    const Lanes<L> zero{}, one = splat<L>(1);
    if constexpr (C == 1) {  // in one dimension all of gamma is along d
      gamma.v[0] = h.v[0] == zero ? zero : gamma.v[0];
      d_bias.v[0] = gamma.v[0] * (h.v[0] < zero ? -one : one);
      return d_bias;
    }
    constexpr real kLeast = sizeof(real) == 4 ? real(1.2e-38) : real(2.3e-308);
    constexpr real kDigit = sizeof(real) == 4 ? real(6e-8) : real(1.1e-16);
    const Lanes<L> lowest = splat<L>(-std::numeric_limits<real>::max());
    const Lanes<L> b = bias.v[0] < lowest ? lowest : bias.v[0];  // not -inf
    const Lanes<L> squared = dot(h, h), root = inverse_root<L>(squared), modulus = squared * root;
    Lanes<L> of_z = modulus - b;  // |z|; rounding may make it 0, but not negative
    const Lanes<L> floor = kDigit * modulus;
    of_z = of_z < floor ? floor : of_z;
    const auto dead = modulus * of_z < splat<L>(kLeast);
    const Lanes<L> per_modulus = dead ? zero : root;
    const Lanes<L> per_of_z = dead ? zero : inverse<L>(dead ? one : of_z);
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
  KRON_INLINE static void activate(Element<L>& z, const Element<L>& bias) {
    for (int c = 0; c < C; ++c) z.v[c] += bias.v[c];
  }
  template <int L>
  KRON_INLINE static Element<L> derive(Element<L>& gamma, const Element<L>&, const Element<L>&) {
    return gamma;
  }
};

// h = tanh(z + b), delta = db = (1 - h^2) gamma, for real numbers.
struct Tanh : Identity {
  template <int L>
  KRON_INLINE static void activate(Element<L>& z, const Element<L>& bias) {
    Identity::activate<L>(z, bias);
    z.v[0] = hyperbolic_tangent<L>(z.v[0]);
  }
  template <int L>
  KRON_INLINE static Element<L> derive(Element<L>& gamma, const Element<L>& h, const Element<L>&) {
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
  static constexpr int kStates = 1, kProducts = 1, kBiases = 1, kParts = 1;
  static constexpr bool kFromOutput = true, kIsDirect = false, kSplits = false;

  // Numbers in an entry of the bias.
  static int bias_parts(const Call& call) {
    return with_activation(call, [](auto sigma) { return sigma.kMovesModuli ? 1 : C; });
  }

  template <int L, class Step>
  KRON_INLINE static void prepare(Step&, int64_t, int64_t, const Element<L>*) {}

  template <int L, class Step>
  KRON_INLINE static void step(const Step& at, int64_t n, const Element<L>*, Element<L>* h) {
    Element<L> z = h[n];
    with_activation(at.call, [&](auto sigma) { sigma.template activate<L>(z, bias_of<L>(at, sigma, n)); });
    h[n] = z;
  }

  template <int L, class Step>
  KRON_INLINE static Derivative<L, Cell> derivative(const Step& at, int64_t n, const Element<L>*,
                                                    const Element<L>* h, const Element<L>* gamma) {
    Derivative<L, Cell> d = {};
    d.delta[0] = gamma[0];
    with_activation(at.call, [&](auto sigma) {
      d.bias[0] = sigma.template derive<L>(d.delta[0], h[n], bias_of<L>(at, sigma, n));
    });
    return d;
  }

 private:
  template <int L, class Step, class Sigma>
  KRON_INLINE static Element<L> bias_of(const Step& at, Sigma, int64_t n) {
    Element<L> bias = {};
    for (int c = 0; c < (Sigma::kMovesModuli ? 1 : C); ++c) bias.v[c] = at.bias(c, n);
    return bias;
  }
};
