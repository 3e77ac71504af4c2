// A recurrence over a whole sequence, forwards and backwards; call.h explains the letters. KRON_CELL, set
// on the compiler's command line, is the header of the cell.
//
// Backwards, gamma_t is the total gradient dL/dh_t. The cell turns it into delta_{t,k} = dL/d(W_k h_{t-1}).
// gamma_{t-1} has three terms: the sum of W_k^H delta_{t,k}, the cell's gradient of h_{t-1} without the
// products, and the gradient of the output h_{t-1}. Only states are kept. They are enough if sigma' follows
// from the state after the step (`kFromOutput`); for other cells the products are computed again.
//
// Factors: with A_f the product of all factors but f on their own digits, z = W_f A_f h and
//   dW_f[p, q]  = sum_{t, b, rest} (A_f^H delta)[.., p, ..] conj(h[.., q, ..])
//   W_f^H dW_f  = sum_{t, b, rest} (W^H delta)[.., p, ..] conj(h[.., q, ..])  =: K_f.
// K_f needs the vectors W^H delta_t and h_{t-1}, the same for every f, so no stage is computed again. The
// caller solves for dW_f in double precision (`shortcut`). If factors are not square, or too ill-conditioned
// for that, the inputs x_f of all stages are computed again and
//   dW_f[p, q] = sum_{t, b, rest} gamma_f[.., p, ..] conj(x_f[.., q, ..]).
//
// A sequence that has ended keeps its state. Gradients pass unchanged through the steps after its end, where
// all delta are 0, whatever the inputs are.

#include <algorithm>
#include <memory>
#include <vector>

#include "blocks.h"
#include "call.h"
#include "gradient.h"
#include "input.h"
#include "lanes.h"
#include "product.h"
#include "step.h"
#include "sums.h"
#include KRON_CELL

namespace {

constexpr int S = Cell::kStates, K = Cell::kProducts;
static_assert(Cell::kFromOutput ? S == 1 : K > 1, "the way back has no place for W h, or for the state");

template <class Layout>
using CellStep = Step<Layout, Cell>;

// The states at the ends of all segments of `every` steps, from before the first to after the last.
template <int L>
Element<L>* kept_states(const Call& call, const Block& block) {
  return reinterpret_cast<Element<L>*>(call.kept + block.begin * (call.segments() + 1) * S * call.width());
}

template <class Layout>
void load_state(const real* from, const Call& call, const Block& block, Element<Layout::kLanes>* state) {
  for (int s = 0; s < S; ++s)
    load_batch<Layout>(from + s * call.batch * call.width(), block, call.size,
                       state + s * call.size / Layout::kUnits);
}
template <class Layout>
void store_state(const Element<Layout::kLanes>* state, const Call& call, const Block& block, real* to) {
  for (int s = 0; s < S; ++s)
    store_batch<Layout>(state + s * call.size / Layout::kUnits, block, call.size,
                        to + s * call.batch * call.width());
}

template <class Layout>
class Forward {
  static constexpr int L = Layout::kLanes;

 public:
  explicit Forward(const Call& call)
      : call_(call),
        step_(call, arena_),
        ring_{arena_.take<Element<L>>(S * step_.size), arena_.take<Element<L>>(S * step_.size)} {}

  void run(const Block& block, Pace& pace) {
    const int64_t elements = S * step_.size, steps = call_.steps, every = call_.every;
    const auto place = [&](int64_t t) {  // of the state before step t
      if (!call_.kept || (t % every != 0 && t != steps)) return ring_[t & 1];
      return kept_states<L>(call_, block) + (t == steps ? call_.segments() : t / every) * elements;
    };
    step_.begin(block);
    Element<L>* state = place(0);
    load_state<Layout>(call_.initial, call_, block, state);
    for (int64_t t = 0; t < steps && !pace.stop(K * step_.size); ++t) {
      Element<L>* next = place(t + 1);
      step_(t, state, next);
      state = next;
      if (call_.outputs)
        store_batch<Layout>(state, block, call_.size, call_.outputs + t * call_.batch * call_.width());
    }
    store_state<Layout>(state, call_, block, call_.last);
  }

 private:
  const Call& call_;
  Arena arena_;
  CellStep<Layout> step_;
  Element<L>* const ring_[2];
};

// The states before each step, for the backward pass. They are the outputs, or the states kept at the ends
// of segments. States within a segment are computed again when the backward pass enters it.
template <class Layout>
class History {
  static constexpr int L = Layout::kLanes;

 public:
  History(const Call& call, CellStep<Layout>& step, Arena& arena)
      : call_(call), step_(step), elements_(S * step.size) {
    if (call.kept)
      segment_ = arena.take<Element<L>>(std::min(call.every - 1, call.steps) * elements_);
    else
      for (auto& slot : ring_) slot = arena.take<Element<L>>(elements_);
  }
  void begin(const Block& block) {
    block_ = block;
    entered_ = loaded_ = -1;
  }
  // The state before step t; for t = T the last one. Call this with t falling from T to 0, at most twice each.
  const Element<L>* operator()(int64_t t, Pace& pace) {
    if (!call_.kept) return from_outputs(t);
    const int64_t segment = t / call_.every, first = segment * call_.every;
    const Element<L>* kept = kept_states<L>(call_, block_);
    if (t == call_.steps) return kept + call_.segments() * elements_;
    if (t == first) return kept + segment * elements_;
    if (segment != entered_) {
      const Element<L>* state = kept + segment * elements_;
      for (int64_t i = first; i < t && !pace.stop(K * step_.size); ++i) {
        step_(i, state, segment_ + (i - first) * elements_);
        state = segment_ + (i - first) * elements_;
      }
      entered_ = segment;
    }
    return segment_ + (t - 1 - first) * elements_;
  }

  // The memory that the state before step t is read from, as far as it is in one piece.
  const real* place(int64_t t) const {
    const int64_t width = call_.width();
    if (!call_.kept) return call_.outputs + ((t - 1) * call_.batch + block_.begin) * width;
    return reinterpret_cast<const real*>(kept_states<L>(call_, block_) + t / call_.every * elements_);
  }

 private:
  const Element<L>* from_outputs(int64_t t) {
    Element<L>* slot = ring_[t & 1];
    if (t != loaded_ && t == 0) load_state<Layout>(call_.initial, call_, block_, slot);
    if (t != loaded_ && t > 0)
      load_batch<Layout>(call_.outputs + (t - 1) * call_.batch * call_.width(), block_, call_.size, slot);
    loaded_ = t;
    return slot;
  }
  const Call& call_;
  CellStep<Layout>& step_;
  const int64_t elements_;
  Block block_{};
  Element<L>*segment_, *ring_[2];
  int64_t entered_ = -1, loaded_ = -1;
};

// From delta_t, computes gamma_{t-1} and the gradients of all factors.
template <class Layout>
class RecurrentGradient {
  static constexpr int L = Layout::kLanes;

 public:
  RecurrentGradient(const Call& call, int64_t size, Arena& arena, Sums& sums)
      : size_(size), share_(K > 1 ? arena.take<Element<L>>(size) : nullptr) {
    for (const ProductFactors& of : product_factors(call, K)) {
      const bool shortcut = call.shortcut[products_.size()];
      products_.push_back(factor_gradient<Layout>(arena, shortcut, of.count, of.shapes,
                                                  call.factors + of.offset, size));
      sums_.push_back(sums.factors.data() + of.offset);
    }
  }
  void step(const Element<L>* delta, const Element<L>* h, Element<L>* gamma) {
    products_[0]->step(delta, h, gamma, sums_[0]);
    for (int k = 1; k < K; ++k) {
      products_[k]->step(delta + k * size_, h, share_, sums_[k]);
      for (int64_t n = 0; n < size_; ++n) add(gamma[n], share_[n]);
    }
  }
  void finish() {
    for (int k = 0; k < K; ++k) products_[k]->finish(sums_[k]);
  }

 private:
  const int64_t size_;
  Element<L>* const share_;  // one product's share of gamma
  std::vector<std::unique_ptr<FactorGradient<L>>> products_;
  std::vector<double*> sums_;
};

template <class Layout>
class Backward {
  static constexpr int L = Layout::kLanes;

 public:
  Backward(const Call& call, Sums& sums)
      : call_(call),
        sums_(sums),
        step_(call, arena_),
        size_(step_.size),
        history_(call, step_, arena_),
        recurrent_(call, size_, arena_, sums),
        inputs_(step_.input, arena_),
        outside_(arena_, call.d_outputs ? call.size : 0),
        gradient_(arena_.sums<Element<L>>(S * size_)),
        delta_(arena_.take<Element<L>>(K * size_)),
        d_input_(Cell::kSplits ? arena_.take<Element<L>>(K * size_) : delta_),
        d_bias_(arena_.sums<Element<L>>(Cell::kBiases * size_)),
        direct_(call.lengths || Cell::kIsDirect ? arena_.sums<Element<L>>(size_) : nullptr) {}

  void run(const Block& block, Pace& pace) {
    arena_.clear();
    step_.begin(block);
    history_.begin(block);
    if (call_.d_last) load_state<Layout>(call_.d_last, call_, block, gradient_);
    for (int64_t t = call_.steps - 1; t >= 0 && !pace.stop(K * size_); --t) step(t, block, pace);
    recurrent_.finish();
    inputs_.finish(sums_.weight);
    for (int j = 0; j < Cell::kBiases; ++j) {
      const int parts = Cell::bias_parts(call_);
      add_units<Layout>(d_bias_ + j * size_, call_.size, parts, sums_.bias.data() + j * parts * call_.size);
    }
    for (int64_t n = 0; direct_ && n < size_; ++n) add(gradient_[n], direct_[n]);
    store_state<Layout>(gradient_, call_, block, call_.d_initial);
  }

 private:
  // The gradients of outputs at step t.
  void read_outside(int64_t t, const Block& block) {
    const real* rows[Layout::kSequences];
    for (int l = 0; l < Layout::kSequences; ++l)
      rows[l] = call_.d_outputs + (t * call_.batch + block.begin + l) * call_.width();
    outside_.read(rows, -call_.batch * call_.width());
  }
  void step(int64_t t, const Block& block, Pace& pace) {
    const int64_t size = size_;
    const Element<L>* after = Cell::kFromOutput ? history_(t + 1, pace) : nullptr;
    const Element<L>* before = history_(t, pace);
    Element<L>*const gradient = gradient_, *const delta = delta_, *const d_input = d_input_;
    Element<L>*const d_bias = d_bias_, *const direct = direct_;
    const Rows<Layout>* const outside = call_.d_outputs ? &outside_ : nullptr;
    const real* const earlier = history_.place(t - 1);
    if (outside) read_outside(t, block);
    if constexpr (!Cell::kFromOutput)
      step_.read(t, before, nullptr, [](int64_t, int64_t) {});
    inputs_.begin(t);
    const bool is_cut = step_.lengths.given;
    const auto live = step_.lengths.live(t);
    const auto or_else = [&](const Element<L>& a, const Element<L>& b) {  // a if the step counts
      Element<L> chosen = a;
      for (int c = 0; is_cut && c < C; ++c) chosen.v[c] = live ? a.v[c] : b.v[c];
      return chosen;
    };
    for (int64_t first = 0; first < size; first += kChunk) {  // short loops, as in step.h
      const int64_t end = std::min(first + kChunk, size);
      for (int64_t n = first; n < end; ++n) {  // the gradient of the state after the step
        if (outside) add(gradient[n], (*outside)[n]);
        if (direct) add(gradient[n], direct[n]);
      }
      for (int64_t n = first; n < end; ++n) {
        if (outside) outside->fetch_next(n);
        for (int s = 0; s < S; ++s) fetch<L>(earlier, s * size + n);
        Element<L> total[S];
        for (int s = 0; s < S; ++s) total[s] = gradient[s * size + n];
        const auto d = Cell::template derivative<L>(step_, n, before, after, total);
        if (direct) direct[n] = or_else(d.state[0], total[0]);
        for (int s = 1; s < S; ++s) gradient[s * size + n] = or_else(d.state[s], total[s]);
        for (int j = 0; j < Cell::kBiases; ++j) add(d_bias[j * size + n], or_else(d.bias[j], {}));
        for (int k = 0; k < K; ++k) {
          const int64_t at = k * size + n;
          delta[at] = or_else(d.delta[k], {});
          if (Cell::kSplits) d_input[at] = or_else(d.input[k], {});
        }
      }
      for (int k = 0; inputs_.wants_elements() && k < K; ++k)
        for (int64_t at = k * size + first; at < k * size + end; ++at) inputs_(d_input[at], at);
    }
    inputs_.end(t, d_input, sums_.weight);
    recurrent_.step(delta, before, gradient);
  }

  const Call& call_;
  Sums& sums_;
  Arena arena_;
  CellStep<Layout> step_;
  const int64_t size_;
  History<Layout> history_;
  RecurrentGradient<Layout> recurrent_;
  InputGradient<Layout> inputs_;
  Rows<Layout> outside_;
  Element<L>*const gradient_;  // of the state after step t, without the part in `direct_`
  Element<L>*const delta_, *const d_input_, *const d_bias_, *const direct_;
};

Shares shares(const Call& call) { return Shares(call.batch, call.threads, by_units(call, K)); }

void run_forward(const Call& call, Running& running) {
  for_blocks<Forward>(shares(call), running, [&](auto layout, int64_t) {
    return std::make_unique<Forward<decltype(layout)>>(call);
  });
}

// Gradients summed stage by stage need lanes of sequences. States kept in lanes of units are computed again.
void put_in_sequences(Call& call, Arena& arena, Running& running) {
  const bool is_kept_by_units = call.kept && by_units(call, K);
  call.in_sequences = 1;
  if (!is_kept_by_units) return;
  const int64_t numbers = S * call.batch * call.width();
  Call again = call;
  again.outputs = nullptr;
  again.kept = call.kept = arena.take<real>((call.segments() + 1) * numbers);
  again.last = arena.take<real>(numbers);
  run_forward(again, running);
}

}  // namespace

KRON_ENTRY int forward(const Call* call) {
  return status(call->interpreter, [&](Running& running) { run_forward(*call, running); });
}

KRON_ENTRY int backward(const Call* call) {
  return status(call->interpreter, [&](Running& running) {
    Call given = *call;
    Arena arena;
    if (!std::all_of(given.shortcut, given.shortcut + K, [](int64_t usable) { return usable; }))
      put_in_sequences(given, arena, running);
    const ProductFactors last = product_factors(given, K).back();
    const int64_t entries = last.offset + factor_entries(last.count, last.shapes);
    const int64_t biases = Cell::bias_parts(given) * Cell::kBiases * given.size;
    sum_over_blocks<Backward>(given, running, shares(given), given.input(K), entries, biases);
  });
}

// ---- a stream: layers upon each other that read one step a call, and keep what calls have in common

namespace {

// u (B, W) = x (B, I) U, by four rows of U at a time.
void project(const real* x, int64_t batch, int64_t inputs, const real* weight, int64_t width, real* u) {
  std::fill_n(u, batch * width, real(0));
  int64_t i = 0;
  for (; i + 4 <= inputs; i += 4)
    for (int64_t b = 0; b < batch; ++b) {
      const real *a = x + b * inputs + i, *rows = weight + i * width;
      real* __restrict to = u + b * width;
      for (int64_t n = 0; n < width; ++n)
        to[n] += (a[0] * rows[n] + a[1] * rows[width + n]) +
                 (a[2] * rows[2 * width + n] + a[3] * rows[3 * width + n]);
    }
  for (; i < inputs; ++i)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t n = 0; n < width; ++n)
        u[b * width + n] += x[b * inputs + i] * weight[i * width + n];
}

// A block of a layer's sequences, and their state.
struct Track {
  virtual ~Track() = default;
  virtual void load(const real* state) = 0;
  virtual void store(real* state) const = 0;
  virtual void advance(real* h) = 0;
};

template <class Layout>
class TrackOf final : public Track {
  using Cells = Element<Layout::kLanes>;

 public:
  TrackOf(const Call& call, const Block& block)
      : call_(call),
        block_(block),
        step_(call, arena_),
        state_(arena_.take<Cells>(S * step_.size)),
        next_(arena_.take<Cells>(S * step_.size)) {
    step_.begin(block);
  }
  void load(const real* state) override { load_state<Layout>(state, call_, block_, state_); }
  void store(real* state) const override { store_state<Layout>(state_, call_, block_, state); }
  void advance(real* h) override {
    step_(0, state_, next_);
    std::swap(state_, next_);
    store_batch<Layout>(state_, block_, call_.size, h);
  }

 private:
  const Call& call_;
  const Block block_;
  Arena arena_;
  CellStep<Layout> step_;
  Cells *state_, *next_;
};

class Layer {
 public:
  // It projects features itself if there are more than `most`; else the cell does.
  Layer(const Call& call, int64_t most)
      : call_(call), features_(call.inputs > most ? call.inputs : 0), h_(call.batch * call.width()) {
    if (features_) call_.inputs = 0;
    x_.resize(call.batch * (call_.inputs ? std::max<int64_t>(call_.inputs, 0) : K * call.width()));
    tokens_.resize(call_.inputs < 0 ? call.batch : 0);
    call_.x = x_.data();
    call_.tokens = tokens_.data();
    for (const Block& block : partition(call.batch, 1, by_units(call, K)))
      with_layout(block, [&](auto layout) {
        tracks_.push_back(std::make_unique<TrackOf<decltype(layout)>>(call_, block));
      });
  }
  Layer(const Layer&) = delete;

  int64_t numbers() const { return S * call_.batch * call_.width(); }  // in its state
  void load(const real* state) {
    for (const auto& track : tracks_) track->load(state);
  }
  void store(real* state) const {
    for (const auto& track : tracks_) track->store(state);
  }
  // Whether every token has a row in the weight.
  bool has_rows(const void* x) const {
    const auto* tokens = static_cast<const int64_t*>(x);
    return std::all_of(tokens, tokens + tokens_.size(),
                       [&](int64_t i) { return 0 <= i && i < call_.token_rows; });
  }
  const real* advance(const void* x, real* h) {
    const auto* numbers = static_cast<const real*>(x);
    if (features_)
      project(numbers, call_.batch, features_, call_.weight, K * call_.width(), x_.data());
    else if (call_.inputs < 0)
      std::copy_n(static_cast<const int64_t*>(x), tokens_.size(), tokens_.data());
    else
      std::copy_n(numbers, x_.size(), x_.data());
    for (const auto& track : tracks_) track->advance(h);
    return h;
  }
  real* h() { return h_.data(); }

 private:
  Call call_;
  const int64_t features_;
  std::vector<real> x_, h_;
  std::vector<int64_t> tokens_;
  std::vector<std::unique_ptr<Track>> tracks_;
};

using Stream = std::vector<std::unique_ptr<Layer>>;

}  // namespace

// These are called with the interpreter's lock, and keep it: a step is short. A state is (layers, S, B, W).

// `calls` are of one step, a layer each; of their tensors, only weight and bias are read later. Null when
// memory ran out.
KRON_ENTRY Stream* stream_open(const Call* calls, int64_t layers, int64_t most) {
  try {
    auto stream = std::make_unique<Stream>();
    for (int64_t i = 0; i < layers; ++i) stream->push_back(std::make_unique<Layer>(calls[i], most));
    return stream.release();
  } catch (const std::exception&) {
    return nullptr;
  }
}

// Writes the last layer's output. Returns 0, or 1 when a token has no row; nothing is changed then.
KRON_ENTRY int stream_advance(Stream* stream, const void* x, real* output) {
  if (!stream->front()->has_rows(x)) return 1;
  for (const auto& layer : *stream)
    x = layer->advance(x, layer == stream->back() ? output : layer->h());
  return 0;
}

KRON_ENTRY void stream_load(Stream* stream, const real* state) {
  for (const auto& layer : *stream) {
    layer->load(state);
    state += layer->numbers();
  }
}

KRON_ENTRY void stream_store(const Stream* stream, real* state) {
  for (const auto& layer : *stream) {
    layer->store(state);
    state += layer->numbers();
  }
}

KRON_ENTRY void stream_close(Stream* stream) { delete stream; }
