// The recurrence, the product and its gradient for 2x2 factors. A thread has four elements of one sequence
// in registers from the first step to the last. Sizes, form of input and activation are template arguments,
// so that a step has no branch for them and the four elements run side by side.

#include "butterfly.cuh"

constexpr int kAhead = 4;  // a row is brought into the cache so many steps before it is loaded

// The elements of a thread.
struct Place : Sequence {
  int n;
  __device__ explicit Place(int64 rows) : Sequence(rows), n(threadIdx.x * R) {}
};

// u_t, loaded before the step that adds it. A token that is not a symbol makes it NaN (see read_input).
template <class Stored, int C, int F, int Form>
class Input {
 public:
  using real = Real<Stored>;
  using Element = Number<real, C>;
  static constexpr int kSize = ButterflySize<F>::kSize, kWidth = C * kSize;

  __device__ Input(const Call& call, const Place& at)
      : call_(call), weight_(static_cast<const Stored*>(call.weight)), n_(at.n), left_(call.steps) {
    const int64 columns = Form == kDense ? kWidth : Form == kFeatures ? call.inputs : 1;
    x_ = static_cast<const Stored*>(call.x) + at.b * columns, stride_ = call.batch * columns;
    tokens_ = static_cast<const int64*>(call.x) + at.b;
    if constexpr (Form == kFeatures) first_.load(weight_, kSize, n_);
    if constexpr (Form == kTokens) token_ = *tokens_;
    ask();
  }
  // Starts to load the next u; `add` adds the one loaded before.
  __device__ void turn() {
    row_ = next_row_, feature_ = next_feature_, bad_ = next_bad_, x_now_ = x_;
    if (--left_ > 0) x_ += stride_, tokens_ += stride_, ask();
  }
  __device__ void add(Element* z) const {
    Element u[R];
    row_.widen_to(u);
    if constexpr (Form == kFeatures) {
      first_.widen_to(u);
      const real feature = widen(feature_);
#pragma unroll
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) u[r].v[c] *= feature;
#pragma unroll 1
      for (int64 i = 1; i < call_.inputs; ++i) {  // these are in the cache: `ask` has read the first
        Element w[R];
        load_elements<R>(weight_ + i * kWidth, kSize, n_, w);
        const real more = widen(x_now_[i]);
#pragma unroll
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < C; ++c) u[r].v[c] += more * w[r].v[c];
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if constexpr (Form == kTokens)
        for (int c = 0; c < C; ++c) u[r].v[c] = bad_ ? real(nan("")) : u[r].v[c];
      ::add(z[r], u[r]);
    }
  }

 private:
  __device__ void ask() {
    if constexpr (Form == kDense) {
      next_row_.load(x_, kSize, n_);
      if (left_ > kAhead) next_row_.fetch(x_ + kAhead * stride_, kSize, n_);
    }
    if constexpr (Form == kFeatures) next_feature_ = *x_;
    if constexpr (Form == kTokens) {
      next_bad_ = token_ < 0 || token_ >= call_.symbols;
      next_row_.load(weight_ + (next_bad_ ? 0 : token_) * kWidth, kSize, n_);
      if (left_ > 1) token_ = tokens_[stride_];
    }
  }

  const Call& call_;
  const Stored *weight_, *x_, *x_now_ = nullptr;
  const int64* tokens_;
  const int n_;
  int64 left_, stride_, token_ = 0;
  Packs<Stored, R, C> first_ = {}, row_ = {}, next_row_ = {};
  Stored feature_ = {}, next_feature_ = {};
  bool bad_ = false, next_bad_ = false;
};

template <class Stored, int C, int F, int Form, int A>
__global__ void __launch_bounds__(ButterflySize<F>::kBlock, 1) butterfly_forward(Call call) {
  using Element = typename Butterfly<Stored, C, F>::Element;
  using real = Real<Stored>;
  constexpr int kSize = ButterflySize<F>::kSize, kWidth = C * kSize;
  const Place at(call.batch);
  Butterfly<Stored, C, F> w(call);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  Element h[R], bias[R];
  for (int r = 0; r < R; ++r) bias[r] = read_bias<real, C>(call, Sigma<A>::template kParts<C>, 0, at.n + r);
  load_elements<R>(static_cast<const real*>(call.initial) + at.b * kWidth, kSize, at.n, h);
  Input<Stored, C, F, Form> input(call, at);
  const bool writes = call.outputs && at.real_one;
  int64 row = at.b * kWidth;
  for (int64 t = 0; t < call.steps; ++t, row += call.batch * kWidth) {
    Element z[R];
#pragma unroll
    for (int r = 0; r < R; ++r) z[r] = h[r];
    input.turn();
    w.apply(z);
    input.add(z);
#pragma unroll
    for (int r = 0; r < R; ++r) Sigma<A>::activate(z[r], bias[r]);
    if (t < length)
#pragma unroll
      for (int r = 0; r < R; ++r) h[r] = z[r];
    if (writes) store_elements<R>(h, kSize, at.n, static_cast<Stored*>(call.outputs) + row);
  }
  if (at.real_one) store_elements<R>(h, kSize, at.n, static_cast<real*>(call.last) + at.b * kWidth);
}

// The rows of a sequence from the last to the first, each loaded well before it is needed.
template <class Stored, int C, int F>
class Rows {
 public:
  static constexpr int kSize = ButterflySize<F>::kSize;
  __device__ Rows(const void* rows, const Call& call, const Place& at)
      : left_(rows ? call.steps : 0), stride_(call.batch * C * kSize), n_(at.n) {
    row_ = static_cast<const Stored*>(rows);
    if (rows) row_ += ((call.steps - 1) * call.batch + at.b) * C * kSize;
  }
  // Loads the next row, if there is one; else `packs` stays.
  __device__ void load(Packs<Stored, R, C>& packs) {
    if (left_ <= 0) return;
    packs.load(row_, kSize, n_);
    if (left_ > kAhead) packs.fetch(row_ - kAhead * stride_, kSize, n_);
    --left_, row_ -= stride_;
  }

 private:
  int64 left_, stride_;
  int n_;
  const Stored* row_;
};

// The backward sweep: delta_t for all t, and the gradients of the initial state and, per sequence, of the bias.
template <class Stored, int C, int F, int A>
__global__ void __launch_bounds__(ButterflySize<F>::kBlock, 1) butterfly_backward(Call call) {
  using Element = typename Butterfly<Stored, C, F>::Element;
  using real = Real<Stored>;
  constexpr int kSize = ButterflySize<F>::kSize, kWidth = C * kSize;
  const Place at(call.batch);
  Butterfly<Stored, C, F> adjoint(call);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  Element g[R] = {}, d_bias[R] = {}, bias[R];
  for (int r = 0; r < R; ++r) bias[r] = read_bias<real, C>(call, Sigma<A>::template kParts<C>, 0, at.n + r);
  if (call.d_last) load_elements<R>(static_cast<const real*>(call.d_last) + at.b * kWidth, kSize, at.n, g);
  // Step t computes the slopes of h_{t-1} beside the product, and starts to load h_{t-2}.
  Rows<Stored, C, F> states(call.outputs, call, at), outsides(call.d_outputs, call, at);
  Slope<real, C> slopes[R];
  Packs<Stored, R, C> next_h, after_h = {}, outside = {};
  const auto ready = [&] {
    Element h[R];
    next_h.widen_to(h);
#pragma unroll
    for (int r = 0; r < R; ++r) slopes[r] = Sigma<A>::slope_at(h[r], bias[r]);
  };
  states.load(next_h), states.load(after_h), outsides.load(outside);
  ready();
  next_h = after_h;
  Stored* deltas = static_cast<Stored*>(call.delta) + ((call.steps - 1) * call.batch + at.b) * kWidth;
  for (int64 t = call.steps - 1; t >= 0; --t, deltas -= call.batch * kWidth) {
    Element delta[R], from_outside[R];
    outside.widen_to(from_outside);
    const bool live = t < length;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      add(g[r], from_outside[r]);
      delta[r] = live ? g[r] : Element{};
      Sigma<A>::descend(delta[r], slopes[r], d_bias[r]);
    }
    states.load(after_h), outsides.load(outside);
    if (at.real_one) store_elements<R>(delta, kSize, at.n, deltas);
    ready();
    adjoint.apply(delta);
    if (live)
#pragma unroll
      for (int r = 0; r < R; ++r) g[r] = delta[r];
    next_h = after_h;
  }
  if (!at.real_one) return;
  store_elements<R>(g, kSize, at.n, static_cast<real*>(call.d_initial) + at.b * kWidth);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < Sigma<A>::template kParts<C>; ++c)
      *bias_gradient<real>(call, Sigma<A>::template kParts<C>, c, at.b, at.n + r) = d_bias[r].v[c];
}

// outputs = W x, row by row.
template <class Stored, int C, int F>
__global__ void __launch_bounds__(ButterflySize<F>::kBlock, kProductThreads / ButterflySize<F>::kBlock) butterfly_product(Call call) {
  using Element = typename Butterfly<Stored, C, F>::Element;
  constexpr int kSize = ButterflySize<F>::kSize, kWidth = C * kSize;
  Butterfly<Stored, C, F> w(call);
  const int n = threadIdx.x * R;
  const int64 rows = call.steps * call.batch;
  const int64 stride = int64(gridDim.x) * blockDim.y, begin = int64(blockIdx.x) * blockDim.y;
  for (int64 m = begin; m < rows; m += stride) {  // the same number of turns for all threads of a block
    const int64 row = m + threadIdx.y;
    Element v[R] = {};
    if (row < rows) load_elements<R>(static_cast<const Stored*>(call.x) + row * kWidth, kSize, n, v);
    w.apply(v);
    if (row < rows) store_elements<R>(v, kSize, n, static_cast<Stored*>(call.outputs) + row * kWidth);
  }
}

// A block's share of the factors' gradients,
//   dW_f[p, q] = sum over rows and all other digits of gamma_f[.., p, ..] conj(x_f[.., q, ..]),
// with x_f the input of the stage of factor f, and gamma_f the gradient of its output. Rows of gradients are
// in call.delta. Rows of inputs are those of call.initial, if given, then those of call.outputs.
template <class Stored, int C, int F>
class ButterflyGradient {
 public:
  using real = Real<Stored>;
  using Element = Number<real, C>;

  // Shared memory holds the exchanged elements, then the factors.
  __device__ explicit ButterflyGradient(const Call& call)
      : factors_(shared_memory<Element>() + 2 * ButterflySize<F>::kSize) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = thread; i < 4 * F; i += ButterflySize<F>::kBlock)
      factors_[i] = static_cast<const Element*>(call.factors)[i];
    __syncthreads();
  }

  __device__ void row(Element (&x)[F][R], Element (&g)[R]) {
#pragma unroll
    for (int j = 0; j + 1 < F; ++j) stage(j, x[j], x[j + 1]);
#pragma unroll
    for (int j = F - 1; j >= 0; --j) back(j, x[j], g);
  }

  // Writes (F, 2, 2, C) numbers: the sums over the threads that hold an entry, in a fixed order.
  __device__ void store(real* to) {
    constexpr int kCount = 4 * C * F, kWarpCount = ButterflySize<F>::kBlock / 32;
    real* shared = shared_memory<real>();
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < F; ++j)
#pragma unroll
      for (int entry = 0; entry < 4 * C; ++entry) {
        real sum = share(j, entry / C / 2, entry / C % 2, entry % C);
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (thread % 32 == 0) shared[thread / 32 * kCount + (F - 1 - j) * 4 * C + entry] = sum;
      }
    __syncthreads();
    for (int i = thread; i < kCount; i += ButterflySize<F>::kBlock) {
      real sum = 0;
      for (int warp = 0; warp < kWarpCount; ++warp) sum += shared[warp * kCount + i];
      to[i] = sum;
    }
  }

 private:
  __device__ Element entry(int j, int p, int q) const { return factors_[4 * (F - 1 - j) + 2 * p + q]; }
  __device__ static int digit(int j) { return threadIdx.x >> (j - kThreadBits) & 1; }
  __device__ void exchange(int j, const Element* v, Element* other) {
    if (j < kThreadBits + kLaneBits) return exchange_.lane(j - kThreadBits, v, other);
    exchange_.share(v);
    exchange_.warp(1 << (j - kThreadBits - kLaneBits), other);
  }

  __device__ void stage(int j, const Element* x, Element* y) {
    if (j < kThreadBits) {
#pragma unroll
      for (int r = 0; r < R; ++r)
        y[r] = combine(entry(j, r >> j & 1, 0), x[r & ~(1 << j)], entry(j, r >> j & 1, 1), x[r | 1 << j]);
      return;
    }
    Element other[R];
    exchange(j, x, other);
    const int mine = digit(j);
    const Element a = entry(j, mine, mine), b = entry(j, mine, 1 - mine);
#pragma unroll
    for (int r = 0; r < R; ++r) y[r] = combine(a, x[r], b, other[r]);
  }

  // A thread adds to column `mine`: its own gradient in row `mine`, its partner's in the other row.
  __device__ void back(int j, const Element* x, Element (&g)[R]) {
    Element other[R];
    if (j < kThreadBits) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        other[r] = g[r ^ 1 << j];
        const int mine = r >> j & 1;
        mac_conj(thread_[j][2 * mine + mine], g[r], x[r]);
        mac_conj(thread_[j][2 - mine], other[r], x[r]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int mine = r >> j & 1;
        g[r] = combine(conj(entry(j, mine, mine)), g[r], conj(entry(j, 1 - mine, mine)), other[r]);
      }
      return;
    }
    exchange(j, g, other);
    const int mine = digit(j);
    const Element a = conj(entry(j, mine, mine)), b = conj(entry(j, 1 - mine, mine));
#pragma unroll
    for (int r = 0; r < R; ++r) {
      mac_conj(beyond_[j - kThreadBits][0], g[r], x[r]);
      mac_conj(beyond_[j - kThreadBits][1], other[r], x[r]);
      g[r] = combine(a, g[r], b, other[r]);
    }
  }

  // This thread's share of part c of dW[p, q].
  __device__ real share(int j, int p, int q, int c) const {
    if (j < kThreadBits) return thread_[j < kThreadBits ? j : 0][2 * p + q].v[c];
    const Element* sums = beyond_[j < kThreadBits ? 0 : j - kThreadBits];
    return digit(j) == q ? (p == q ? sums[0] : sums[1]).v[c] : real(0);
  }

  Element* factors_;
  Element thread_[kThreadBits][4] = {}, beyond_[F > kThreadBits ? F - kThreadBits : 1][2] = {};
  Exchange<real, C, F> exchange_;
};

template <class Stored, int C, int F>
__global__ void __launch_bounds__(ButterflySize<F>::kBlock, kGradientThreads / ButterflySize<F>::kBlock) butterfly_gradient(Call call) {
  using Element = typename ButterflyGradient<Stored, C, F>::Element;
  using real = Real<Stored>;
  constexpr int kSize = ButterflySize<F>::kSize, kWidth = C * kSize;
  ButterflyGradient<Stored, C, F> gradient(call);
  const int n = threadIdx.x * R;
  const int64 rows = call.steps * call.batch;
  const int64 stride = int64(gridDim.x) * blockDim.y, begin = int64(blockIdx.x) * blockDim.y;
  const int64 initial = call.initial ? call.initial_rows : 0;  // rows of inputs that come from `initial`
  Element next_x[R], next_g[R];
  const auto ask = [&](int64 row) {
    for (int r = 0; r < R; ++r) next_x[r] = next_g[r] = Element{};
    if (row >= rows) return;
    load_elements<R>(static_cast<const Stored*>(call.delta) + row * kWidth, kSize, n, next_g);
    if (row < initial)
      load_elements<R>(static_cast<const real*>(call.initial) + row * kWidth, kSize, n, next_x);
    else
      load_elements<R>(static_cast<const Stored*>(call.outputs) + (row - initial) * kWidth, kSize, n, next_x);
  };
  constexpr bool kEarly = sizeof(real) == 4;  // in double precision there are not enough registers
  if (kEarly) ask(begin + threadIdx.y);
  for (int64 m = begin; m < rows; m += stride) {
    if (!kEarly) ask(m + threadIdx.y);
    Element x[F][R], g[R];
#pragma unroll
    for (int r = 0; r < R; ++r) x[0][r] = next_x[r], g[r] = next_g[r];
    if (kEarly) ask(m + stride + threadIdx.y);
    gradient.row(x, g);
  }
  gradient.store(static_cast<real*>(call.d_factors) + blockIdx.x * 4 * C * F);
}
