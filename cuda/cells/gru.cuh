// The cell of a GRU: r, z = sigmoid(W_k h_{t-1} + u_k + b_k), v = W_n h_{t-1} + b_h, n = tanh(u_n + b_n + r v),
// h_t = (1 - z) n + z h_{t-1}. All numbers are real.
#pragma once

#include "../step.cuh"

struct Cell {
  static constexpr int kStates = 1, kProducts = 3, kBiases = 4;
  static constexpr bool kFromOutput = false, kSplits = true;

  template <int C>
  __device__ static int bias_parts(const Call&) {
    return 1;
  }
  template <class Element>
  __device__ static void step(const Element* recurrent, const Element* u, const Element* bias, Element* state,
                              int64) {
    const auto gate = gates(recurrent, u, bias);
    state[0].v[0] = (1 - gate.z) * gate.n + gate.z * state[0].v[0];
  }
  template <class Element>
  __device__ static Derivative<Element, Cell> derivative(const Element* recurrent, const Element* u,
                                                         const Element* bias, const Element* before,
                                                         const Element&, const Element* total, int64) {
    const auto gate = gates(recurrent, u, bias);
    const auto gamma = total[0].v[0], d_n = gamma * (1 - gate.z) * (1 - gate.n * gate.n);
    Derivative<Element, Cell> d = {};
    d.state[0].v[0] = gamma * gate.z;
    d.delta[0].v[0] = d_n * gate.v * gate.r * (1 - gate.r);
    d.delta[1].v[0] = gamma * (before[0].v[0] - gate.n) * gate.z * (1 - gate.z);
    d.delta[2].v[0] = d_n * gate.r;
    for (int k = 0; k < kProducts; ++k) d.input[k] = d.delta[k];
    d.input[2].v[0] = d_n;
    return d;
  }

 private:
  template <class real>
  struct Gates {
    real r, z, v, n;
  };
  template <class real>
  __device__ static Gates<real> gates(const Number<real, 1>* recurrent, const Number<real, 1>* u,
                                      const Number<real, 1>* bias) {
    const real r = sigmoid(recurrent[0].v[0] + u[0].v[0] + bias[0].v[0]);
    const real z = sigmoid(recurrent[1].v[0] + u[1].v[0] + bias[1].v[0]), v = recurrent[2].v[0] + bias[3].v[0];
    return {r, z, v, tanh(u[2].v[0] + bias[2].v[0] + r * v)};
  }
};
