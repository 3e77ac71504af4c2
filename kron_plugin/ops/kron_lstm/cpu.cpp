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
class Forward {
 public:
  explicit Forward(const Call& call)
      : call_(call),
        step_(call, arena_),
        ring_{arena_.take<Cell<L>>(2 * call.size), arena_.take<Cell<L>>(2 * call.size)} {}

  void run(const Block& block, Pace& pace) {
    const int64_t n = call_.size;
    const auto place = [&](int64_t t) {  // of the state that step t starts from
      const bool keep = call_.kept && t % call_.every == 0 && t < call_.steps;
      return keep ? kept_states<L>(call_, block) + t / call_.every * 2 * n : ring_[t & 1];
    };
    step_.begin(block);
    load_state<L>(call_.h0, call_.c0, block, n, place(0));
    for (int64_t t = 0; t < call_.steps && !pace.stop(kGates * n); ++t) {
      step_(t, place(t), place(t + 1));
      if (call_.outputs) store_batch<L>(place(t + 1), block, n, call_.outputs + t * call_.batch * n);
    }
    store_state<L>(place(call_.steps), block, n, call_.h_n, call_.c_n);
  }

 private:
  const Call& call_;
  Arena arena_;
  Step<L> step_;
  Cell<L>* const ring_[2];
};

// The states that steps start from, on the way back. Those within a segment are computed again when it
// is entered.
template <int L>
class History {
 public:
  History(const Call& call, Step<L>& step, Arena& arena)
      : call_(call),
        step_(step),
        segment_(arena.take<Cell<L>>(std::min(call.every - 1, call.steps) * 2 * call.size)) {}
  void begin(const Block& block) {
    kept_ = kept_states<L>(call_, block);
    entered_ = -1;
  }
  // To be called with t falling from T - 1 to 0.
  const Cell<L>* operator()(int64_t t, Pace& pace) {
    const int64_t cells = 2 * call_.size, segment = t / call_.every, first = segment * call_.every;
    const Cell<L>* state = kept_ + segment * cells;
    if (segment != entered_)
      for (int64_t i = first; i < t && !pace.stop(kGates * call_.size); ++i) {
        step_(i, state, segment_ + (i - first) * cells);
        state = segment_ + (i - first) * cells;
      }
    entered_ = segment;
    return t == first ? kept_ + segment * cells : segment_ + (t - 1 - first) * cells;
  }

 private:
  const Call& call_;
  Step<L>& step_;
  Cell<L>* const segment_;
  const Cell<L>* kept_ = nullptr;
  int64_t entered_ = -1;
};

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
class Backward {
 public:
  Backward(const Call& call, Sums& sums)
      : call_(call),
        sums_(sums),
        step_(call, arena_),
        history_(call, step_, arena_),
        recurrent_(call, arena_, sums),
        inputs_(step_.input, arena_),
        gradient_(arena_.sums<Cell<L>>(2 * call.size)),
        delta_(arena_.take<Cell<L>>(kGates * call.size)),
        d_bias_(arena_.sums<Cell<L>>(kGates * call.size)),
        outside_(call.d_outputs ? arena_.take<Cell<L>>(call.size) : nullptr),
        carried_(call.lengths ? arena_.sums<Cell<L>>(call.size) : nullptr) {}

  void run(const Block& block, Pace& pace) {
    const int64_t size = call_.size;
    arena_.clear();
    step_.begin(block);
    history_.begin(block);
    load_state<L>(call_.d_h_n, call_.d_c_n, block, size, gradient_);
    for (int64_t t = call_.steps - 1; t >= 0 && !pace.stop(kGates * size); --t) step(t, block, pace);
    recurrent_.finish();
    inputs_.finish(sums_.weight);
    add_lanes<L>(d_bias_, kGates * size, 1, sums_.bias.data());
    store_state<L>(gradient_, block, size, call_.d_h0, call_.d_c0);
  }

 private:
  void step(int64_t t, const Block& block, Pace& pace) {
    const int64_t size = call_.size;
    const Cell<L>* state = history_(t, pace);
    Cell<L>*const gradient = gradient_, *const d_c = gradient_ + size, *const delta = delta_;
    Cell<L>*const d_bias = d_bias_, *const outside = outside_, *const carried = carried_;
    if (outside) load_batch<L>(call_.d_outputs + t * call_.batch * size, block, size, outside);
    step_.read(t, state);
    inputs_.begin(t);
    const auto live = step_.lengths.live(t);
    for (int64_t n = 0; n < size; ++n) {
      const Lanes<L> later = d_c[n].v[0];
      Lanes<L> gamma = gradient[n].v[0];
      if (outside) gamma += outside[n].v[0];
      if (carried) gamma += carried[n].v[0];
      const Gates<L> d = gates_backward<L>(step_.gates(n), state[size + n].v[0], gamma, d_c[n].v[0]);
      if (carried) {
        carried[n].v[0] = live ? Lanes<L>{} : gamma;
        d_c[n].v[0] = live ? d_c[n].v[0] : later;
      }
      const Lanes<L> deltas[kGates] = {d.i, d.f, d.g, d.o};
      for (int k = 0; k < kGates; ++k) {
        const int64_t at = k * size + n;
        delta[at].v[0] = live ? deltas[k] : Lanes<L>{};  // whatever stands behind a sequence's end
        add(d_bias[at], delta[at]);
        inputs_(delta[at], at);
      }
    }
    inputs_.end(t, delta, sums_.weight);
    recurrent_.step(delta, state, gradient);
  }

  const Call& call_;
  Sums& sums_;
  Arena arena_;
  Step<L> step_;
  History<L> history_;
  RecurrentGradient<L> recurrent_;
  InputGradient<L> inputs_;
  Cell<L>*const gradient_;  // of the state after step t: of h, and then of c
  Cell<L>*const delta_, *const d_bias_, *const outside_, *const carried_;
};

}  // namespace

extern "C" int kron_lstm_forward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    const int64_t state = call->batch * call->size * sizeof(real);
    use_huge_pages(call->outputs, call->steps * state);
    use_huge_pages(call->kept, segments(*call) * 2 * state);
    for_blocks<Forward>(Shares(call->batch, call->threads), running, [&](auto width, int64_t) {
      return std::make_unique<Forward<decltype(width)::value>>(*call);
    });
  });
}

extern "C" int kron_lstm_backward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    if (call->inputs == 0)
      use_huge_pages(call->d_x, call->steps * call->batch * kGates * call->size * sizeof(real));
    const GateFactors last = gate_factors(*call).back();
    const int64_t entries = last.offset + factor_entries(last.count, last.shapes);
    sum_over_blocks<Backward>(*call, running, entries, kGates * call->size);
  });
}
