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
void forward_block(const Call& call, const Block& block) {
  Arena arena;
  Step<L> step(call, block, arena);
  Workspace<L> work(arena, {&step.product});
  const int64_t n = call.size;
  Cell<L>* ring[2] = {arena.take<Cell<L>>(n), arena.take<Cell<L>>(n)};
  load_batch<L>(call.h0, block, n, ring[1]);
  const Cell<L>* h = ring[1];
  for (int64_t t = 0; t < call.steps; ++t) {
    const bool keep = call.kept && ((t + 1) % call.every == 0 || t + 1 == call.steps);
    Cell<L>* next = keep ? kept_states<L>(call, block) + t / call.every * n : ring[t & 1];
    step(t, h, next, work);
    h = next;
    if (call.states) store_batch<L>(h, block, n, call.states + t * call.batch * C * n);
  }
  store_batch<L>(h, block, n, call.last);
}

// States h_{-1}..h_{T-1} of a block on the way back, wherever the forward pass left them. Kept is the
// last state of each segment of `every` steps, and all of a segment when every = 1; the others are
// computed again when their segment is entered.
template <int L>
class History {
 public:
  History(const Call& call, const Block& block, Step<L>& step, Workspace<L>& work, Arena& arena)
      : call_(call), block_(block), step_(step), work_(work) {
    const int64_t n = call.size;
    initial_ = arena.take<Cell<L>>(n);
    load_batch<L>(call.h0, block, n, initial_);
    if (call.kept)
      segment_ = arena.take<Cell<L>>(std::min(call.every - 1, call.steps) * n);
    else
      for (auto& slot : ring_) slot = arena.take<Cell<L>>(n);
  }
  // To be called with t falling from T - 1 to -1, twice each at most.
  const Cell<L>* operator()(int64_t t) {
    if (t < 0) return initial_;
    if (!call_.kept) return from_rows(t);
    const int64_t n = call_.size, segment = t / call_.every, first = segment * call_.every;
    if ((t + 1) % call_.every == 0 || t + 1 == call_.steps)
      return kept_states<L>(call_, block_) + segment * n;
    if (segment != entered_) {
      const Cell<L>* h = (*this)(first - 1);
      for (int64_t i = first; i <= t; ++i) {
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
  const Block& block_;
  Step<L>& step_;
  Workspace<L>& work_;
  Cell<L>*initial_, *segment_, *ring_[2];
  int64_t entered_ = -1, loaded_ = -1;
};

Sums no_sums(const Call& call) {
  const int64_t biases = (call.activation == kModrelu ? 1 : C) * call.size;
  return Sums(factor_entries(call.count, call.shapes), biases, call.input());
}

template <int L>
void backward_block(const Call& call, const Block& block, Sums& sums) {
  const int64_t n = call.size, row = call.batch * C * n;
  Arena arena;
  Step<L> step(call, block, arena);
  Workspace<L> work(arena, {&step.product});
  History<L> history(call, block, step, work, arena);
  const auto factors =
      factor_gradient<L>(arena, call.shortcut, call.count, call.shapes, call.factors, n);
  InputGradient<L> inputs(step.input, arena);
  Cell<L>*g = arena.take<Cell<L>>(n), *delta = arena.take<Cell<L>>(n);
  Cell<L>* d_bias = arena.take<Cell<L>>(n);
  Cell<L>* outside = call.d_states ? arena.take<Cell<L>>(n) : nullptr;
  Cell<L>* carried = call.lengths ? arena.take<Cell<L>>(n) : nullptr;
  if (call.d_last) load_batch<L>(call.d_last, block, n, g);
  for (int64_t t = call.steps - 1; t >= 0; --t) {
    const Cell<L>* h = history(t);
    const Cell<L>* before = history(t - 1);
    if (outside) load_batch<L>(call.d_states + t * row, block, n, outside);
    inputs.begin(t);
    const auto live = step.lengths.live(t);
    for (int64_t i = 0; i < n; ++i) {
      Cell<L> gamma = g[i];
      if (outside) add(gamma, outside[i]);
      for (int c = 0; carried && c < C; ++c) {
        gamma.v[c] += carried[i].v[c];
        carried[i].v[c] = live ? Lanes<L>{} : gamma.v[c];
        gamma.v[c] = live ? gamma.v[c] : Lanes<L>{};
      }
      for (int c = 0; c < C; ++c) __builtin_prefetch(&before[i].v[c]);  // it was last used long ago
      step.activate_backward(gamma, h[i], i, d_bias[i]);
      inputs(gamma, i);
      delta[i] = gamma;
    }
    inputs.end(t, delta, sums.weight);
    factors->step(delta, before, g, sums.factors.data());
  }
  factors->finish(sums.factors.data());
  inputs.finish(sums.weight);
  add_lanes<L>(d_bias, n, call.activation == kModrelu ? 1 : C, sums.bias.data());
  store_batch<L>(g, block, n, call.d_h0);
}

}  // namespace

extern "C" int kron_rnn_forward(const Call* call) {
  const int64_t row = call->batch * C * call->size * sizeof(real);
  use_huge_pages(call->states, call->steps * row);
  use_huge_pages(call->kept, kept_count(*call) * row);
  return status([&] {
    return for_blocks(call->batch, call->threads, [&](auto width, const Block& block, int64_t) {
      forward_block<decltype(width)::value>(*call, block);
    });
  });
}

extern "C" int kron_rnn_backward(const Call* call) {
  if (call->inputs == 0)
    use_huge_pages(call->d_x, call->steps * call->batch * C * call->size * sizeof(real));
  const auto zero = [&] { return no_sums(*call); };
  return status([&] {
    return sum_over_blocks(*call, zero, [&](auto width, const Block& block, Sums& sums) {
      backward_block<decltype(width)::value>(*call, block, sums);
    });
  });
}
