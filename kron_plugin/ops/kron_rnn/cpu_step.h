// One step of the recurrence for a block of lanes, forwards; and its nonlinearity backwards.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../native/blocks.h"
#include "../native/input.h"
#include "../native/lanes.h"
#include "../native/product.h"

enum Activation : int64_t { kModrelu, kTanh, kIdentity };

// The arguments, as cpu.py lays them out: every field is eight bytes. Tensors are contiguous; W = C N.
struct Call {
  int64_t threads, steps, batch, size, inputs;  // inputs: 0 dense x, -1 tokens, else features (I)
  int64_t activation, count, every;             // factors; states are kept every so many steps
  const int64_t* shapes;                        // (F, 2)
  const real* factors;                          // (sum P_f Q_f, C)
  const real* x;                                // (T, B, W) or (T, B, I)
  const int64_t* tokens;                        // (T, B)
  const real* weight;                           // (I, W)
  const real* bias;                             // (N) for modrelu, else (W)
  const real* h0;                               // (B, W)
  const int64_t* lengths;                       // (B) or null
  real* states;                                 // (T, B, W) or null
  real* kept;                                   // a block of lanes after the other: (T/every, N, C, L), or null
  real* last;                                   // (B, W)
  // for the backward pass only
  int64_t shortcut;         // 1: d_factors gets K_f = W_f^H dW_f; 0: dW_f itself
  int64_t token_rows;       // rows of the weight table
  const real* d_states;     // (T, B, W) or null
  const real* d_last;       // (B, W) or null
  real* d_x;                // as x, or null
  real* d_weight;           // as weight
  double* d_factors;        // as factors
  real* d_bias;             // as bias
  real* d_h0;               // (B, W)
  // of kernel.py's
  const Interpreter* interpreter;  // or null

  InputTensors input() const {
    return {steps, batch, size, inputs, token_rows, x, tokens, weight, d_x};
  }
};

template <int L>
struct Step {
  const Call& call;
  const Product product;
  Lengths<L> lengths;
  Input<L> input;

  Step(const Call& c, Arena& arena)
      : call(c),
        product(read_factors(c.count, c.shapes, c.factors, false), sizeof(Cell<L>)),
        lengths(c.lengths, c.steps),
        input(c.input(), arena) {}

  void begin(const Block& block) {
    lengths.begin(block);
    input.begin(block);
  }

  KRON_INLINE void activate(Cell<L>& z, int64_t n) const {
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

  // next = sigma(W prev + u_t), or prev in the lanes that have ended. Out of line, so that a state
  // computed again has the same bits: in two inlined copies other products may go into fused
  // multiply-adds.
  KRON_OUTLINE void operator()(int64_t t, const Cell<L>* prev, Cell<L>* next, Workspace<L>& work) {
    input.read(t);
    const Coef* diagonal = product.diagonal();
    const auto live = lengths.live(t);
    apply<L>(product, prev, next, work, [&](int64_t first, int64_t count) {
      for (int64_t n = first; n < first + count; ++n) {
        Cell<L> z = next[n];
        if (diagonal) {
          z = {};
          mac(z, splat<L>(diagonal[n]), next[n]);
        }
        input.add_to(z, n);
        activate(z, n);
        if (lengths.given)
          for (int c = 0; c < C; ++c) z.v[c] = live ? z.v[c] : prev[n].v[c];
        next[n] = z;
      }
    });
  }

  // From gamma = dL/dh_t and h = h_t to dL/dz_t, in place; adds to the bias gradient. cpu.cpp derives it.
  KRON_INLINE void activate_backward(Cell<L>& gamma, const Cell<L>& h, int64_t n, Cell<L>& d_bias) const {
    if (C == 1 && call.activation == kModrelu) {  // in one dimension all of gamma is along d
      const Lanes<L> zero{}, one = splat<L>(1);
      gamma.v[0] = h.v[0] == zero ? zero : gamma.v[0];
      d_bias.v[0] += gamma.v[0] * (h.v[0] < zero ? -one : one);
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
      d_bias.v[0] += radial;
      return;
    }
    if (call.activation == kTanh) gamma.v[0] *= 1 - h.v[0] * h.v[0];
    add(d_bias, gamma);
  }
};
