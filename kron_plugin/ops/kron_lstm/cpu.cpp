// The LSTM's recurrence over a whole sequence, forwards and backwards. With z_k = W_k h_{t-1} + u_k + b_k,
//
//   i, f, o = sigmoid(z_i, z_f, z_o),   g = tanh(z_g),   c_t = f c_{t-1} + i g,   h_t = o tanh(c_t).
//
// Letters: t time, b batch (the lanes of vectors), n unit, k gate, f factor, p/q rows/columns of a factor.
//
// Backwards, from gamma_t = dL/dh_t in total and what reaches c_t from later steps, with a = tanh(c_t):
//
//   dc = (from later) + gamma o (1 - a^2)       delta_o = gamma a o (1 - o)
//   delta_i = dc g i (1 - i)                    delta_f = dc c_{t-1} f (1 - f)
//   delta_g = dc i (1 - g^2)                    to c_{t-1}: dc f
//
// and gamma_{t-1} is the sum of W_k^T delta_k and of what reaches h_{t-1} from outside. Only states are
// kept; the gates are computed again from the state that a step starts from. The factors' gradients are
// those of kron_rnn/cpu.cpp, gate by gate.
//
// A sequence that has ended keeps its state: both gradients are carried past its last steps, and all
// delta_k are 0 there.

#include <algorithm>
#include <memory>
#include <vector>

#include "../native/blocks.h"
#include "../native/gradient.h"
#include "../native/input.h"
#include "../native/lanes.h"
#include "../native/product.h"
#include "../native/sums.h"
#include "cpu_step.h"

namespace {

int64_t segments(const Call& call) { return (call.steps + call.every - 1) / call.every; }

// The state that each segment of `every` steps starts from.
template <int L>
Cell<L>* kept_states(const Call& call, const Block& block) {
  return reinterpret_cast<Cell<L>*>(call.kept + block.begin * segments(call) * 2 * call.size);
}

// h and c as one state.
template <int L>
void load_state(const real* h, const real* c, const Block& block, int64_t n, Cell<L>* state) {
  if (h) load_batch<L>(h, block, n, state);
  if (c) load_batch<L>(c, block, n, state + n);
}
template <int L>
void store_state(const Cell<L>* state, const Block& block, int64_t n, real* h, real* c) {
  store_batch<L>(state, block, n, h);
  store_batch<L>(state + n, block, n, c);
}

template <int L>
void forward_block(const Call& call, const Block& block) {
  Arena arena;
  Step<L> step(call, block, arena);
  const int64_t n = call.size;
  Cell<L>* ring[2] = {arena.take<Cell<L>>(2 * n), arena.take<Cell<L>>(2 * n)};
  const auto place = [&](int64_t t) {  // of the state that step t starts from
    const bool keep = call.kept && t % call.every == 0 && t < call.steps;
    return keep ? kept_states<L>(call, block) + t / call.every * 2 * n : ring[t & 1];
  };
  load_state<L>(call.h0, call.c0, block, n, place(0));
  for (int64_t t = 0; t < call.steps; ++t) {
    step(t, place(t), place(t + 1));
    if (call.outputs) store_batch<L>(place(t + 1), block, n, call.outputs + t * call.batch * n);
  }
  store_state<L>(place(call.steps), block, n, call.h_n, call.c_n);
}

// The states that steps start from, on the way back. Those within a segment are computed again when it
// is entered.
template <int L>
class History {
 public:
  History(const Call& call, const Block& block, Step<L>& step, Arena& arena)
      : call_(call),
        step_(step),
        kept_(kept_states<L>(call, block)),
        segment_(arena.take<Cell<L>>(std::min(call.every - 1, call.steps) * 2 * call.size)) {}
  // To be called with t falling from T - 1 to 0.
  const Cell<L>* operator()(int64_t t) {
    const int64_t cells = 2 * call_.size, segment = t / call_.every, first = segment * call_.every;
    const Cell<L>* state = kept_ + segment * cells;
    if (segment != entered_)
      for (int64_t i = first; i < t; ++i) {
        step_(i, state, segment_ + (i - first) * cells);
        state = segment_ + (i - first) * cells;
      }
    entered_ = segment;
    return t == first ? kept_ + segment * cells : segment_ + (t - 1 - first) * cells;
  }

 private:
  const Call& call_;
  Step<L>& step_;
  const Cell<L>* const kept_;
  Cell<L>* const segment_;
  int64_t entered_ = -1;
};

Sums no_sums(const Call& call) {
  const GateFactors last = gate_factors(call).back();
  const int64_t entries = last.offset + factor_entries(last.count, last.shapes);
  return Sums(entries, kGates * call.size, call.input());
}

// From delta_t (4N cells) to gamma_{t-1}, and to the factors of all gates.
template <int L>
class RecurrentGradient {
 public:
  RecurrentGradient(const Call& call, Arena& arena, Sums& sums)
      : size_(call.size), share_(arena.take<Cell<L>>(call.size)) {
    for (const GateFactors& gate : gate_factors(call)) {
      const bool shortcut = call.shortcut[gates_.size()];
      gates_.push_back(factor_gradient<L>(arena, shortcut, gate.count, gate.shapes,
                                          call.factors + gate.offset, call.size));
      sums_.push_back(sums.factors.data() + gate.offset);
    }
  }
  void step(const Cell<L>* delta, const Cell<L>* h, Cell<L>* gamma) {
    gates_[0]->step(delta, h, gamma, sums_[0]);
    for (int k = 1; k < kGates; ++k) {
      gates_[k]->step(delta + k * size_, h, share_, sums_[k]);
      for (int64_t n = 0; n < size_; ++n) add(gamma[n], share_[n]);
    }
  }
  void finish() {
    for (int k = 0; k < kGates; ++k) gates_[k]->finish(sums_[k]);
  }

 private:
  const int64_t size_;
  Cell<L>* const share_;  // of one gate in gamma
  std::vector<std::unique_ptr<FactorGradient<L>>> gates_;
  std::vector<double*> sums_;
};

// From the gradients of h_t and c_t to those of the gates' pre-activations, and of c_{t-1} in place.
template <int L>
KRON_INLINE Gates<L> gates_backward(const Gates<L>& gate, Lanes<L> before, Lanes<L> gamma, Lanes<L>& d_c) {
  const Lanes<L> a = hyperbolic_tangent<L>(gate.f * before + gate.i * gate.g);
  const Lanes<L> dc = d_c + gamma * gate.o * (1 - a * a);
  d_c = dc * gate.f;
  return {dc * gate.g * gate.i * (1 - gate.i), dc * before * gate.f * (1 - gate.f),
          dc * gate.i * (1 - gate.g * gate.g), gamma * a * gate.o * (1 - gate.o)};
}

template <int L>
void backward_block(const Call& call, const Block& block, Sums& sums) {
  const int64_t size = call.size;
  Arena arena;
  Step<L> step(call, block, arena);
  History<L> history(call, block, step, arena);
  RecurrentGradient<L> recurrent(call, arena, sums);
  InputGradient<L> inputs(step.input, arena);
  Cell<L>*gradient = arena.take<Cell<L>>(2 * size), *d_c = gradient + size;  // of the state after step t
  Cell<L>*delta = arena.take<Cell<L>>(kGates * size), *d_bias = arena.take<Cell<L>>(kGates * size);
  Cell<L>* outside = call.d_outputs ? arena.take<Cell<L>>(size) : nullptr;
  Cell<L>* carried = call.lengths ? arena.take<Cell<L>>(size) : nullptr;
  load_state<L>(call.d_h_n, call.d_c_n, block, size, gradient);
  for (int64_t t = call.steps - 1; t >= 0; --t) {
    const Cell<L>* state = history(t);
    if (outside) load_batch<L>(call.d_outputs + t * call.batch * size, block, size, outside);
    step.read(t, state);
    inputs.begin(t);
    const auto live = step.lengths.live(t);
    for (int64_t n = 0; n < size; ++n) {
      const Lanes<L> later = d_c[n].v[0];
      Lanes<L> gamma = gradient[n].v[0];
      if (outside) gamma += outside[n].v[0];
      if (carried) gamma += carried[n].v[0];
      const Gates<L> d = gates_backward<L>(step.gates(n), state[size + n].v[0], gamma, d_c[n].v[0]);
      if (carried) {
        carried[n].v[0] = live ? Lanes<L>{} : gamma;
        d_c[n].v[0] = live ? d_c[n].v[0] : later;
      }
      const Lanes<L> deltas[kGates] = {d.i, d.f, d.g, d.o};
      for (int k = 0; k < kGates; ++k) {
        const int64_t at = k * size + n;
        delta[at].v[0] = live ? deltas[k] : Lanes<L>{};  // whatever stands behind a sequence's end
        add(d_bias[at], delta[at]);
        inputs(delta[at], at);
      }
    }
    inputs.end(t, delta, sums.weight);
    recurrent.step(delta, state, gradient);
  }
  recurrent.finish();
  inputs.finish(sums.weight);
  add_lanes<L>(d_bias, kGates * size, 1, sums.bias.data());
  store_state<L>(gradient, block, size, call.d_h0, call.d_c0);
}

}  // namespace

extern "C" int kron_lstm_forward(const Call* call) {
  const int64_t state = call->batch * call->size * sizeof(real);
  use_huge_pages(call->outputs, call->steps * state);
  use_huge_pages(call->kept, segments(*call) * 2 * state);
  return status([&] {
    return for_blocks(call->batch, call->threads, [&](auto width, const Block& block, int64_t) {
      forward_block<decltype(width)::value>(*call, block);
    });
  });
}

extern "C" int kron_lstm_backward(const Call* call) {
  if (call->inputs == 0)
    use_huge_pages(call->d_x, call->steps * call->batch * kGates * call->size * sizeof(real));
  const auto zero = [&] { return no_sums(*call); };
  return status([&] {
    return sum_over_blocks(*call, zero, [&](auto width, const Block& block, Sums& sums) {
      backward_block<decltype(width)::value>(*call, block, sums);
    });
  });
}
