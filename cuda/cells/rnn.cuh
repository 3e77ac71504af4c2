// The cell of a KRU: h_t = sigma(W h_{t-1} + u_t; b). README.md derives the formulas.
#pragma once

#include "../step.cuh"

enum Activation { kModrelu, kTanh, kIdentity };

// The derivative of sigma at z_t. It follows from h_t alone, so it is ready before gamma = dL/dh_t:
//   delta = dL/dz_t = stretch gamma - across Re(gamma conj direction) direction
template <class real, int C>
struct Slope {
  real stretch, across;
  Number<real, C> direction;
};

// A nonlinearity. `activate` turns z into h in place. `slope_at` returns its derivative at h. `descend` turns gamma
// into delta in place and adds to the gradient of the bias. An entry of the bias has `kParts<C>` numbers.
template <int A>
struct Sigma;

template <>
struct Sigma<kModrelu> {
  template <int C>
  static constexpr int kParts = 1;

  template <class real, int C>
  __device__ static void activate(Number<real, C>& z, const Number<real, C>& bias) {
    const real square = dot(z, z);
    const Root<real> modulus = root_of(square);
    real moved = modulus.root + bias.v[0];
    moved = moved < 0 ? 0 : moved;  // NaN stays NaN
    const real scale = square == 0 ? 0 : moved * modulus.inverse;
    for (int c = 0; c < C; ++c) z.v[c] *= scale;
  }
  template <class real, int C>
  __device__ static Slope<real, C> slope_at(const Number<real, C>& h, const Number<real, C>& bias) {
    Slope<real, C> slope = {1, 0, {}};
    if constexpr (C == 1) {  // in one dimension all of gamma is along the direction
      slope.stretch = h.v[0] == 0 ? 0 : 1;
      slope.direction.v[0] = h.v[0] < 0 ? -slope.stretch : slope.stretch;
      return slope;
    }
    constexpr real kLeast = real(sizeof(real) == 4 ? 1.2e-38 : 2.3e-308);  // the least normal number
    constexpr real kDigit = real(sizeof(real) == 4 ? 6e-8 : 1.1e-16);
    constexpr real kMost = real(sizeof(real) == 4 ? 3.4e38 : 1.7e308);
    // All is computed, then selected: with branches, a thread's elements would not run side by side.
    const real square = dot(h, h);
    const Root<real> root = root_of(square);
    const real modulus = square == 0 ? 0 : root.root;
    const real moved = bias.v[0] < -kMost ? -kMost : bias.v[0];  // -inf times 0 is NaN
    real of_z = modulus - moved;  // |z|; rounding may make it 0, but not negative
    of_z = of_z < kDigit * modulus ? kDigit * modulus : of_z;
    const bool dead = modulus * of_z < kLeast;
    const real inverted = inverse(of_z), per_of_z = dead ? 0 : inverted;
    slope.stretch = modulus * per_of_z;
    slope.across = moved * per_of_z;
    for (int c = 0; c < C; ++c) slope.direction.v[c] = dead ? 0 : h.v[c] * root.inverse;
    return slope;
  }
  template <class real, int C>
  __device__ static void descend(Number<real, C>& gamma, const Slope<real, C>& slope, Number<real, C>& d_bias) {
    const real radial = dot(gamma, slope.direction), along = slope.across * radial;
    for (int c = 0; c < C; ++c) gamma.v[c] = slope.stretch * gamma.v[c] - along * slope.direction.v[c];
    d_bias.v[0] += radial;
  }
};

template <>
struct Sigma<kIdentity> {
  template <int C>
  static constexpr int kParts = C;

  template <class real, int C>
  __device__ static void activate(Number<real, C>& z, const Number<real, C>& bias) {
    add(z, bias);
  }
  template <class real, int C>
  __device__ static Slope<real, C> slope_at(const Number<real, C>&, const Number<real, C>&) {
    return {1, 0, {}};
  }
  template <class real, int C>
  __device__ static void descend(Number<real, C>& gamma, const Slope<real, C>&, Number<real, C>& d_bias) {
    add(d_bias, gamma);
  }
};

template <>
struct Sigma<kTanh> : Sigma<kIdentity> {  // for real numbers
  template <class real, int C>
  __device__ static void activate(Number<real, C>& z, const Number<real, C>& bias) {
    add(z, bias);
    z.v[0] = tanh(z.v[0]);
  }
  template <class real, int C>
  __device__ static Slope<real, C> slope_at(const Number<real, C>& h, const Number<real, C>&) {
    return {1 - h.v[0] * h.v[0], 0, {}};
  }
  template <class real, int C>
  __device__ static void descend(Number<real, C>& gamma, const Slope<real, C>& slope, Number<real, C>& d_bias) {
    gamma.v[0] *= slope.stretch;
    add(d_bias, gamma);
  }
};

// use(sigma) with the nonlinearity of a call.
template <class Use>
__device__ inline auto with_activation(int64 activation, Use use) {
  if (activation == kModrelu) return use(Sigma<kModrelu>());
  if (activation == kTanh) return use(Sigma<kTanh>());
  return use(Sigma<kIdentity>());
}

// What the kernels of stages.cu need from a cell.
struct Cell {
  static constexpr int kStates = 1, kProducts = 1, kBiases = 1;
  static constexpr bool kFromOutput = true, kSplits = false;

  template <int C>
  __device__ static int bias_parts(const Call& call) {
    return call.activation == kModrelu ? 1 : C;
  }
  // Turns the state into the next one in place, from W h, u and the bias of one unit.
  template <class Element>
  __device__ static void step(const Element* recurrent, const Element* u, const Element* bias, Element* state,
                              int64 activation) {
    state[0] = recurrent[0];
    add(state[0], u[0]);
    with_activation(activation, [&](auto sigma) { sigma.activate(state[0], bias[0]); });
  }
  // Back through a step at one unit, from `total`, the gradient of the state after it.
  template <class Element>
  __device__ static Derivative<Element, Cell> derivative(const Element*, const Element*, const Element* bias,
                                                         const Element*, const Element& h,
                                                         const Element* total, int64 activation) {
    Derivative<Element, Cell> d = {};
    d.delta[0] = total[0];
    with_activation(activation, [&](auto sigma) {
      sigma.descend(d.delta[0], sigma.slope_at(h, bias[0]), d.bias);
    });
    return d;
  }
};
