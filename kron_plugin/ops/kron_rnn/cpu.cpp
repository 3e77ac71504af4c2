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
//
// Results do not depend on timing: blocks of lanes are dealt out to threads in a fixed order, and each
// thread's sums are added in a fixed order.

#include <atomic>
#include <exception>
#include <memory>
#include <thread>

#include "cpu_gradient.h"
#include "cpu_lanes.h"
#include "cpu_product.h"
#include "cpu_step.h"

namespace {

// Blocks as wide as vectors go, unless threads would be left without one; the rest of the batch in
// narrower ones, so that no lane is empty.
std::vector<Block> partition(int64_t batch, int64_t threads) {
  constexpr int kNarrowest = 16 / sizeof(real);  // of the vectors: narrower ones take as long
  int width = kMaxLanes;
  while (width > kNarrowest && (batch + width - 1) / width < threads) width /= 2;
  std::vector<Block> blocks;
  for (int64_t begin = 0; begin < batch; begin += width) {
    while (width > batch - begin) width = width > kNarrowest ? width / 2 : 1;
    blocks.push_back({begin, width});
  }
  return blocks;
}

// Runs work(thread) on every thread; false if one of them ran out of memory.
template <class Work>
bool parallel(int64_t threads, Work work) {
  std::atomic<bool> failed{false};
  const auto guarded = [&](int64_t thread) {
    try {
      work(thread);
    } catch (const std::exception&) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(guarded, thread);
  guarded(0);
  for (std::thread& other : others) other.join();
  return !failed;
}

template <int L>
using Width = std::integral_constant<int, L>;

template <class Work>
void with_lanes(int lanes, Work work) {
  switch (lanes) {
    case 1: return work(Width<1>());
    case kMaxLanes / 4: return work(Width<kMaxLanes / 4>());
    case kMaxLanes / 2: return work(Width<kMaxLanes / 2>());
    case kMaxLanes: return work(Width<kMaxLanes>());
  }
}

int64_t kept_count(const Call& call) { return (call.steps + call.every - 1) / call.every; }

template <int L>
Cell<L>* kept_states(const Call& call, const Block& block) {
  return reinterpret_cast<Cell<L>*>(call.kept + block.begin * kept_count(call) * call.size * C);
}

template <int L>
void load_batch(const real* from, const Block& block, int64_t n, Cell<L>* cells) {
  const real* rows[L];
  for (int l = 0; l < L; ++l) rows[l] = from + (block.begin + l) * C * n;
  load_rows<L>(rows, n, cells);
}
template <int L>
void store_batch(const Cell<L>* cells, const Block& block, int64_t n, real* to) {
  real* rows[L];
  for (int l = 0; l < L; ++l) rows[l] = to + (block.begin + l) * C * n;
  store_rows<L, false>(cells, n, rows);
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

// A thread's share of the gradients that are sums over the batch.
struct Sums {
  std::vector<double> factors, bias, weight;
  std::vector<real> table;  // of the rows that tokens name

  explicit Sums(const Call& call)
      : bias((call.activation == kModrelu ? 1 : C) * call.size),
        weight(std::max<int64_t>(call.inputs, 0) * C * call.size),
        table(call.inputs < 0 ? call.token_rows * C * call.size : 0) {
    int64_t entries = 0;
    for (int64_t f = 0; f < call.count; ++f) entries += call.shapes[2 * f] * call.shapes[2 * f + 1];
    factors.resize(entries * C);
  }
};

// Adds the sums over lanes of cells[n].v[c] to to[c n + n].
template <int L>
void add_lanes(const Cell<L>* cells, int64_t n, int parts, double* to) {
  for (int c = 0; c < parts; ++c)
    for (int64_t i = 0; i < n; ++i) to[c * n + i] += sum<L>(cells[i].v[c]);
}

// The gradients of x_t and of the input weight, from delta_t.
template <int L>
class InputGradient {
 public:
  InputGradient(const Call& call, Step<L>& step, Arena& arena) : call_(call), step_(step) {
    if (call.inputs <= 0) return;
    d_weight_ = arena.take<Cell<L>>(call.inputs * call.size);
    d_features_ = arena.take<Lanes<L>>(call.inputs);
  }
  void begin(int64_t t) {
    if (call_.inputs > 0) step_.read_features(t);
    for (int64_t i = 0; i < call_.inputs; ++i) d_features_[i] = Lanes<L>{};
  }
  KRON_INLINE void operator()(const Cell<L>& delta, int64_t n) {
    for (int64_t i = 0; i < call_.inputs; ++i) {
      const real* weight = call_.weight + i * C * call_.size + n;
      Cell<L>& sum = d_weight_[i * call_.size + n];
      for (int c = 0; c < C; ++c) {
        sum.v[c] += step_.features[i] * delta.v[c];
        if (call_.d_x) d_features_[i] += weight[c * call_.size] * delta.v[c];
      }
    }
  }
  void end(int64_t t, const Cell<L>* delta, Sums& sums) {
    const int64_t width = C * call_.size;
    real* rows[L];
    for (int l = 0; l < L; ++l) {
      if (call_.inputs < 0) rows[l] = sums.table.data() + call_.tokens[step_.row(t, l)] * width;
      if (call_.inputs == 0 && call_.d_x) rows[l] = call_.d_x + step_.row(t, l) * width;
    }
    if (call_.inputs < 0) store_rows<L, true>(delta, call_.size, rows);
    if (call_.inputs == 0 && call_.d_x) store_rows<L, false>(delta, call_.size, rows);
    for (int64_t i = 0; call_.d_x && i < call_.inputs; ++i) {
      real a[L];
      put<L>(a, d_features_[i]);
      for (int l = 0; l < L; ++l) call_.d_x[step_.row(t, l) * call_.inputs + i] = a[l];
    }
  }
  void finish(Sums& sums) const {
    for (int64_t i = 0; i < call_.inputs; ++i)
      add_lanes<L>(d_weight_ + i * call_.size, call_.size, C, sums.weight.data() + i * C * call_.size);
  }

 private:
  const Call& call_;
  Step<L>& step_;
  Cell<L>* d_weight_ = nullptr;
  Lanes<L>* d_features_ = nullptr;
};

template <int L>
std::unique_ptr<FactorGradient<L>> factor_gradient(const Call& call, Arena& arena) {
  if (call.shortcut)
    return std::make_unique<Shortcut<L>>(arena, call.count, call.shapes, call.factors, call.size);
  return std::make_unique<Stages<L>>(arena, call.count, call.shapes, call.factors, call.size);
}

template <int L>
void backward_block(const Call& call, const Block& block, Sums& sums) {
  const int64_t n = call.size, row = call.batch * C * n;
  Arena arena;
  Step<L> step(call, block, arena);
  Workspace<L> work(arena, {&step.product});
  History<L> history(call, block, step, work, arena);
  const auto factors = factor_gradient<L>(call, arena);
  InputGradient<L> inputs(call, step, arena);
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
    const auto live = step.live(t);
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
    inputs.end(t, delta, sums);
    factors->step(delta, before, g, sums.factors.data());
  }
  factors->finish(sums.factors.data());
  inputs.finish(sums);
  add_lanes<L>(d_bias, n, call.activation == kModrelu ? 1 : C, sums.bias.data());
  store_batch<L>(g, block, n, call.d_h0);
}

template <class From, class To>
void add_to(const std::vector<From>& from, std::vector<To>& to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

// Large arrays that are about to be written for the first time: faulting them in 4 KiB at a time costs
// as much as the recurrence itself.
void use_huge_pages(void* array, int64_t bytes) {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(array) + kPage - 1) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(array) + bytes;
  if (array && bytes >= int64_t(1) << 22) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace

// Both return 0, or 1 when memory ran out.
extern "C" int kron_rnn_forward(const Call* call) {
  const int64_t row = call->batch * C * call->size * sizeof(real);
  use_huge_pages(call->states, call->steps * row);
  use_huge_pages(call->kept, kept_count(*call) * row);
  const std::vector<Block> blocks = partition(call->batch, call->threads);
  const int64_t threads = std::min<int64_t>(call->threads, blocks.size());
  return !parallel(threads, [&](int64_t thread) {
    for (size_t i = thread; i < blocks.size(); i += threads)
      with_lanes(blocks[i].lanes, [&](auto width) {
        forward_block<decltype(width)::value>(*call, blocks[i]);
      });
  });
}

extern "C" int kron_rnn_backward(const Call* call) {
  if (call->inputs == 0)
    use_huge_pages(call->d_x, call->steps * call->batch * C * call->size * sizeof(real));
  const std::vector<Block> blocks = partition(call->batch, call->threads);
  const int64_t threads = std::min<int64_t>(call->threads, blocks.size());
  std::vector<std::unique_ptr<Sums>> sums(threads);
  const bool done = parallel(threads, [&](int64_t thread) {
    sums[thread] = std::make_unique<Sums>(*call);
    for (size_t i = thread; i < blocks.size(); i += threads)
      with_lanes(blocks[i].lanes, [&](auto width) {
        backward_block<decltype(width)::value>(*call, blocks[i], *sums[thread]);
      });
  });
  if (!done) return 1;
  Sums& total = *sums[0];
  for (int64_t thread = 1; thread < threads; ++thread) {
    add_to(sums[thread]->factors, total.factors);
    add_to(sums[thread]->bias, total.bias);
    add_to(sums[thread]->weight, total.weight);
    add_to(sums[thread]->table, total.table);
  }
  std::copy(total.factors.begin(), total.factors.end(), call->d_factors);
  std::copy(total.bias.begin(), total.bias.end(), call->d_bias);
  std::copy(total.weight.begin(), total.weight.end(), call->d_weight);
  std::copy(total.table.begin(), total.table.end(), call->d_weight);
  return 0;
}
