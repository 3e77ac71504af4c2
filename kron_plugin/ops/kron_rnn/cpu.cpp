// The recurrence h_t = sigma(W h_{t-1} + u_t) over a whole sequence, forwards and backwards.
//
// Letters: t time, b batch (the lanes of vectors), n unit, f factor, p/q rows/columns of a factor.
// Gradients of complex numbers are PyTorch's: dL/dRe + i dL/dIm.
//
// Backwards, gamma_t = dL/dh_t in total, and sigma backwards gives delta_t = dL/dz_t from gamma_t and
// h_t alone, no z_t is kept:
//   identity  delta = gamma
//   tanh      delta = (1 - h^2) gamma
//   modReLU   h = (|z| + b) z/|z|, so z has the direction d = h/|h| and |z| = |h| - b where h != 0,
//             and delta = (|h|/|z|) gamma - (b/|z|) d Re(conj(d) gamma), db = Re(conj(d) gamma).
//             Where h = 0 all are 0 (so they are, too, where |h| |z| is below the smallest normal).
// Then gamma_{t-1} = g_t + what reaches h_{t-1} from outside, g_t = W^H delta_t.
//
// Factors: with A_f the product of all factors but f on their own digits, z = W_f A_f h + u and
//   dW_f[p, q]  = sum_{t, b, rest} (A_f^H delta)[.., p, ..] conj(h[.., q, ..])
//   W_f^H dW_f  = sum_{t, b, rest} (W^H delta)[.., p, ..] conj(h[.., q, ..])  =: K_f,
// whose two vectors are g_t and h_{t-1}, at hand for every f at once: no stage is computed again. The
// caller solves for dW_f in double precision (`shortcut`). For factors that are not square, or too
// ill-conditioned for that, the inputs x_f of all stages are computed again and
//   dW_f[p, q] = sum_{t, b, rest} gamma_f[.., p, ..] conj(x_f[.., q, ..]).
//
// A sequence that has ended keeps its state: gamma is carried past its last steps, and delta is 0 there.

#include <algorithm>
#include <memory>

#include "../native/blocks.h"
#include "../native/gradient.h"
#include "../native/input.h"
#include "../native/lanes.h"
#include "../native/product.h"
#include "../native/sums.h"
#include "cpu_step.h"

namespace {

int64_t kept_count(const Call& call) { return (call.steps + call.every - 1) / call.every; }

template <int L>
Cell<L>* kept_states(const Call& call, const Block& block) {
  return reinterpret_cast<Cell<L>*>(call.kept + block.begin * kept_count(call) * call.size * C);
}

template <int L>
class Forward {
 public:
  explicit Forward(const Call& call)
      : call_(call),
        step_(call, arena_),
        work_(arena_, {&step_.product}),
        ring_{arena_.take<Cell<L>>(call.size), arena_.take<Cell<L>>(call.size)} {}

  void run(const Block& block, Pace& pace) {
    const int64_t n = call_.size;
    step_.begin(block);
    load_batch<L>(call_.h0, block, n, ring_[1]);
    const Cell<L>* h = ring_[1];
    for (int64_t t = 0; t < call_.steps && !pace.stop(n); ++t) {
      const bool keep = call_.kept && ((t + 1) % call_.every == 0 || t + 1 == call_.steps);
      Cell<L>* next = keep ? kept_states<L>(call_, block) + t / call_.every * n : ring_[t & 1];
      step_(t, h, next, work_);
      h = next;
      if (call_.states) store_batch<L>(h, block, n, call_.states + t * call_.batch * C * n);
    }
    store_batch<L>(h, block, n, call_.last);
  }

 private:
  const Call& call_;
  Arena arena_;
  Step<L> step_;
  Workspace<L> work_;
  Cell<L>* const ring_[2];
};

// States h_{-1}..h_{T-1} of a block on the way back, wherever the forward pass left them. Kept is the
// last state of each segment of `every` steps, and all of a segment when every = 1; the others are
// computed again when their segment is entered.
template <int L>
class History {
 public:
  History(const Call& call, Step<L>& step, Workspace<L>& work, Arena& arena)
      : call_(call), step_(step), work_(work), initial_(arena.take<Cell<L>>(call.size)) {
    const int64_t n = call.size;
    if (call.kept)
      segment_ = arena.take<Cell<L>>(std::min(call.every - 1, call.steps) * n);
    else
      for (auto& slot : ring_) slot = arena.take<Cell<L>>(n);
  }
  void begin(const Block& block) {
    block_ = block;
    entered_ = loaded_ = -1;
    load_batch<L>(call_.h0, block, call_.size, initial_);
  }
  // To be called with t falling from T - 1 to -1, twice each at most.
  const Cell<L>* operator()(int64_t t, Pace& pace) {
    if (t < 0) return initial_;
    if (!call_.kept) return from_rows(t);
    const int64_t n = call_.size, segment = t / call_.every, first = segment * call_.every;
    if ((t + 1) % call_.every == 0 || t + 1 == call_.steps)
      return kept_states<L>(call_, block_) + segment * n;
    if (segment != entered_) {
      const Cell<L>* h = (*this)(first - 1, pace);
      for (int64_t i = first; i <= t && !pace.stop(n); ++i) {
        step_(i, h, segment_ + (i - first) * n, work_);
        h = segment_ + (i - first) * n;
      }
      entered_ = segment;
    }
    return segment_ + (t - first) * n;
  }

 private:
  const Cell<L>* from_rows(int64_t t) {
    if (t != loaded_) {
      load_batch<L>(call_.states + t * call_.batch * C * call_.size, block_, call_.size, ring_[t & 1]);
      loaded_ = t;
    }
    return ring_[t & 1];
  }
  const Call& call_;
  Step<L>& step_;
  Workspace<L>& work_;
  Block block_{};
  Cell<L>* const initial_;
  Cell<L>*segment_, *ring_[2];
  int64_t entered_ = -1, loaded_ = -1;
};

template <int L>
class Backward {
 public:
  Backward(const Call& call, Sums& sums)
      : call_(call),
        sums_(sums),
        step_(call, arena_),
        work_(arena_, {&step_.product}),
        history_(call, step_, work_, arena_),
        factors_(factor_gradient<L>(arena_, call.shortcut, call.count, call.shapes, call.factors, call.size)),
        inputs_(step_.input, arena_),
        g_(arena_.sums<Cell<L>>(call.size)),
        delta_(arena_.take<Cell<L>>(call.size)),
        d_bias_(arena_.sums<Cell<L>>(call.size)),
        outside_(call.d_states ? arena_.take<Cell<L>>(call.size) : nullptr),
        carried_(call.lengths ? arena_.sums<Cell<L>>(call.size) : nullptr) {}

  void run(const Block& block, Pace& pace) {
    const int64_t n = call_.size;
    arena_.clear();
    step_.begin(block);
    history_.begin(block);
    if (call_.d_last) load_batch<L>(call_.d_last, block, n, g_);
    for (int64_t t = call_.steps - 1; t >= 0 && !pace.stop(n); --t) step(t, block, pace);
    factors_->finish(sums_.factors.data());
    inputs_.finish(sums_.weight);
    add_lanes<L>(d_bias_, n, call_.activation == kModrelu ? 1 : C, sums_.bias.data());
    store_batch<L>(g_, block, n, call_.d_h0);
  }

 private:
  void step(int64_t t, const Block& block, Pace& pace) {
    const int64_t n = call_.size;
    const Cell<L>* h = history_(t, pace);
    const Cell<L>* before = history_(t - 1, pace);
    Cell<L>*const g = g_, *const delta = delta_, *const d_bias = d_bias_;
    Cell<L>*const outside = outside_, *const carried = carried_;
    if (outside) load_batch<L>(call_.d_states + t * call_.batch * C * n, block, n, outside);
    inputs_.begin(t);
    const auto live = step_.lengths.live(t);
    for (int64_t i = 0; i < n; ++i) {
      Cell<L> gamma = g[i];
      if (outside) add(gamma, outside[i]);
      for (int c = 0; carried && c < C; ++c) {
        gamma.v[c] += carried[i].v[c];
        carried[i].v[c] = live ? Lanes<L>{} : gamma.v[c];
        gamma.v[c] = live ? gamma.v[c] : Lanes<L>{};
      }
      for (int c = 0; c < C; ++c) __builtin_prefetch(&before[i].v[c]);  // it was last used long ago
      step_.activate_backward(gamma, h[i], i, d_bias[i]);
      inputs_(gamma, i);
      delta[i] = gamma;
    }
    inputs_.end(t, delta, sums_.weight);
    factors_->step(delta, before, g, sums_.factors.data());
  }

  const Call& call_;
  Sums& sums_;
  Arena arena_;
  Step<L> step_;
  Workspace<L> work_;
  History<L> history_;
  const std::unique_ptr<FactorGradient<L>> factors_;
  InputGradient<L> inputs_;
  Cell<L>*const g_, *const delta_, *const d_bias_, *const outside_, *const carried_;
};

}  // namespace

extern "C" int kron_rnn_forward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    const int64_t row = call->batch * C * call->size * sizeof(real);
    use_huge_pages(call->states, call->steps * row);
    use_huge_pages(call->kept, kept_count(*call) * row);
    for_blocks<Forward>(Shares(call->batch, call->threads), running, [&](auto width, int64_t) {
      return std::make_unique<Forward<decltype(width)::value>>(*call);
    });
  });
}

extern "C" int kron_rnn_backward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    if (call->inputs == 0)
      use_huge_pages(call->d_x, call->steps * call->batch * C * call->size * sizeof(real));
    const int64_t biases = (call->activation == kModrelu ? 1 : C) * call->size;
    sum_over_blocks<Backward>(*call, running, factor_entries(call->count, call->shapes), biases);
  });
}
