// The cell of an LSTM: z_k = W_k h_{t-1} + u_k + b_k for the gates k = i, f, g, o,
// c_t = sigma(z_f) c_{t-1} + sigma(z_i) tanh(z_g), h_t = sigma(z_o) tanh(c_t). All numbers are real.
#pragma once

#include "../step.cuh"

struct Cell {
  static constexpr int kStates = 2, kProducts = 4, kBiases = 4;
  static constexpr bool kFromOutput = false, kSplits = false;

  template <int C>
  __device__ static int bias_parts(const Call&) {
    return 1;
  }
  template <class Element>
  __device__ static void step(const Element* recurrent, const Element* u, const Element* bias, Element* state,
                              int64) {
    const auto gate = gates(recurrent, u, bias);
    state[1].v[0] = gate.f * state[1].v[0] + gate.i * gate.g;
    state[0].v[0] = gate.o * tanh(state[1].v[0]);
  }
  template <class Element>
  __device__ static Derivative<Element, Cell> derivative(const Element* recurrent, const Element* u,
                                                         const Element* bias, const Element* before,
                                                         const Element&, const Element* total, int64) {
    const auto gate = gates(recurrent, u, bias);
    const auto c = before[1].v[0], gamma = total[0].v[0], bent = tanh(gate.f * c + gate.i * gate.g);
    const auto dc = total[1].v[0] + gamma * gate.o * (1 - bent * bent);
    Derivative<Element, Cell> d = {};
    d.state[1].v[0] = dc * gate.f;
    d.delta[0].v[0] = dc * gate.g * gate.i * (1 - gate.i);
    d.delta[1].v[0] = dc * c * gate.f * (1 - gate.f);
    d.delta[2].v[0] = dc * gate.i * (1 - gate.g * gate.g);
    d.delta[3].v[0] = gamma * bent * gate.o * (1 - gate.o);
    return d;
  }

 private:
  template <class real>
  struct Gates {
    real i, f, g, o;
  };
  template <class real>
  __device__ static Gates<real> gates(const Number<real, 1>* recurrent, const Number<real, 1>* u,
                                      const Number<real, 1>* bias) {
    real z[kProducts];
    for (int k = 0; k < kProducts; ++k) z[k] = recurrent[k].v[0] + u[k].v[0] + bias[k].v[0];
    return {sigmoid(z[0]), sigmoid(z[1]), tanh(z[2]), sigmoid(z[3])};
  }
};
