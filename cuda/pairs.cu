// The recurrence, the product and its gradient for 2x2 factors: a thread has four elements of one
// sequence in registers from the first step to the last.

#include "pairs.cuh"

// Where a thread works. Sequences beyond the batch go along, for the shuffles, and write nothing.
struct Place {
  int64 b, n;
  bool real_one;
  __device__ explicit Place(int64 rows) : n(threadIdx.x * R) {
    b = int64(blockIdx.x) * blockDim.y + threadIdx.y;
    real_one = b < rows;
    b = real_one ? b : rows - 1;
  }
};

template <class Stored, int C>
__global__ void __launch_bounds__(PairsLimits<Stored, C>::kMaxThreads, 1) pairs_forward(Call call) {
  using Element = typename Pairs<Stored, C>::Element;
  using real = Real<Stored>;
  const Place at(call.batch);
  const int64 width = C * call.size, n = at.n;
  Pairs<Stored, C> w(call);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  Element h[R], next_u[R], bias[R];
  for (int r = 0; r < R; ++r) bias[r] = read_bias<real, C>(call, n + r);
  load_cells<R>(static_cast<const real*>(call.h0) + at.b * width, call.size, n, h);
  read_input<R, Stored>(call, call.size, 0, at.b, n, next_u);
  for (int64 t = 0; t < call.steps; ++t) {
    Element u[R], z[R];
    for (int r = 0; r < R; ++r) u[r] = next_u[r], z[r] = h[r];
    if (t + 1 < call.steps) read_input<R, Stored>(call, call.size, t + 1, at.b, n, next_u);  // on its way early
    w.apply(z);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      add(z[r], u[r]);
      activate(z[r], bias[r], call.activation);
      if (t < length) h[r] = z[r];
    }
    if (call.states && at.real_one)
      store_cells<R>(h, call.size, n, static_cast<Stored*>(call.states) + (t * call.batch + at.b) * width);
  }
  if (at.real_one) store_cells<R>(h, call.size, n, static_cast<real*>(call.last) + at.b * width);
}

// The sweep back: delta_t for all t, the gradients of h0 and, still a row a sequence, of the bias.
template <class Stored, int C>
__global__ void __launch_bounds__(PairsLimits<Stored, C>::kMaxThreads, 1) pairs_backward(Call call) {
  using Element = typename Pairs<Stored, C>::Element;
  using real = Real<Stored>;
  const Place at(call.batch);
  const int64 width = C * call.size, n = at.n;
  Pairs<Stored, C> adjoint(call);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  Element g[R] = {}, d_bias[R] = {}, bias[R], next_h[R], next_outside[R] = {};
  for (int r = 0; r < R; ++r) bias[r] = read_bias<real, C>(call, n + r);
  if (call.d_last) load_cells<R>(static_cast<const real*>(call.d_last) + at.b * width, call.size, n, g);
  const auto read = [&](int64 t) {
    const int64 row = (t * call.batch + at.b) * width;
    load_cells<R>(static_cast<const Stored*>(call.states) + row, call.size, n, next_h);
    if (call.d_states)
      load_cells<R>(static_cast<const Stored*>(call.d_states) + row, call.size, n, next_outside);
  };
  read(call.steps - 1);
  for (int64 t = call.steps - 1; t >= 0; --t) {
    Element h[R], delta[R];
    for (int r = 0; r < R; ++r) h[r] = next_h[r], add(g[r], next_outside[r]);
    if (t > 0) read(t - 1);
    const bool live = t < length;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      delta[r] = live ? g[r] : Element{};
      activate_backward(delta[r], h[r], bias[r], call.activation, d_bias[r]);
    }
    if (at.real_one)
      store_cells<R>(delta, call.size, n, static_cast<Stored*>(call.delta) + (t * call.batch + at.b) * width);
    adjoint.apply(delta);
    for (int r = 0; r < R; ++r)
      if (live) g[r] = delta[r];
  }
  if (!at.real_one) return;
  store_cells<R>(g, call.size, n, static_cast<real*>(call.d_h0) + at.b * width);
  for (int r = 0; r < R; ++r) store_bias_gradient(call, at.b, n + r, d_bias[r]);
}

// states = W x, row by row.
template <class Stored, int C>
__global__ void __launch_bounds__(PairsLimits<Stored, C>::kMaxThreads, 1) pairs_product(Call call) {
  using Element = typename Pairs<Stored, C>::Element;
  Pairs<Stored, C> w(call);
  const int64 rows = call.steps * call.batch, width = C * call.size, n = threadIdx.x * R;
  const int64 stride = int64(gridDim.x) * blockDim.y, begin = int64(blockIdx.x) * blockDim.y;
  for (int64 m = begin; m < rows; m += stride) {  // the same number of turns for all of a block
    const int64 row = m + threadIdx.y;
    Element v[R] = {};
    if (row < rows) load_cells<R>(static_cast<const Stored*>(call.x) + row * width, call.size, n, v);
    w.apply(v);
    if (row < rows) store_cells<R>(v, call.size, n, static_cast<Stored*>(call.states) + row * width);
  }
}

// A block's share of the factors' gradients,
//   dW_f[p, q] = sum over rows and all other digits of gamma_f[.., p, ..] conj(x_f[.., q, ..]),
// x_f what enters the stage of factor f, gamma_f the gradient of what leaves it. Rows of gradients are
// call.delta; rows of inputs are h0's, if given, and then those of call.states.
template <class Stored, int C>
class PairsGradient {
 public:
  using real = Real<Stored>;
  using Element = Cell<real, C>;
  static constexpr int kBits = PairsLimits<Stored, C>::kMaxBits;

  // Shared memory holds what is exchanged, and behind it the factors.
  __device__ explicit PairsGradient(const Call& call)
      : bits_(call.bits), factors_(shared_memory<Element>() + 2 * R * blockDim.x) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = thread; i < 4 * bits_; i += blockDim.x * blockDim.y)
      factors_[i] = static_cast<const Element*>(call.factors)[i];
    __syncthreads();
  }

  __device__ void row(Element (&x)[kBits][R], Element (&g)[R]) {
#pragma unroll
    for (int j = 0; j + 1 < kBits; ++j)
      if (j + 1 < bits_) stage(j, x[j], x[j + 1]);
#pragma unroll
    for (int j = kBits - 1; j >= 0; --j)
      if (j < bits_) back(j, x[j], g);
  }

  // Sums over the threads that hold an entry, in a fixed order, to (bits, 2, 2, C) numbers.
  __device__ void store(real* to) {
    real* shared = shared_memory<real>();
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, count = 4 * C * bits_;
    const int warps = blockDim.x * blockDim.y / 32;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kBits; ++j)
#pragma unroll
      for (int entry = 0; entry < 4 * C; ++entry)
        if (j < bits_) {
          real sum = share(j, entry / C / 2, entry / C % 2, entry % C);
          for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
          if (thread % 32 == 0) shared[thread / 32 * count + (bits_ - 1 - j) * 4 * C + entry] = sum;
        }
    __syncthreads();
    for (int i = thread; i < count; i += blockDim.x * blockDim.y) {
      real sum = 0;
      for (int warp = 0; warp < warps; ++warp) sum += shared[warp * count + i];
      to[i] = sum;
    }
  }

 private:
  __device__ Element entry(int j, int p, int q) const { return factors_[4 * (bits_ - 1 - j) + 2 * p + q]; }
  __device__ static int digit(int j) { return threadIdx.x >> (j - kThreadBits) & 1; }
  __device__ void exchange(int j, const Element* v, Element* other) {
    if (j < kThreadBits + kLaneBits)
      exchange_.lane(j - kThreadBits, v, other);
    else
      exchange_.warp(j - kThreadBits - kLaneBits, v, other);
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

  // A thread adds to column `mine`: with its own gradient in row `mine`, with its partner's in the other.
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

  // What this thread has of part c of dW[p, q].
  __device__ real share(int j, int p, int q, int c) const {
    if (j < kThreadBits) return thread_[j < kThreadBits ? j : 0][2 * p + q].v[c];
    const Element* sums = beyond_[j < kThreadBits ? 0 : j - kThreadBits];
    return digit(j) == q ? (p == q ? sums[0] : sums[1]).v[c] : real(0);
  }

  const int bits_;
  Element* factors_;
  Element thread_[kThreadBits][4] = {}, beyond_[kBits - kThreadBits][2] = {};
  Exchange<real, C> exchange_;
};

template <class Stored, int C>
__global__ void __launch_bounds__(PairsLimits<Stored, C>::kMaxThreads, 1) pairs_gradient(Call call) {
  using Element = typename PairsGradient<Stored, C>::Element;
  using real = Real<Stored>;
  PairsGradient<Stored, C> gradient(call);
  const int64 rows = call.steps * call.batch, width = C * call.size, n = threadIdx.x * R;
  const int64 stride = int64(gridDim.x) * blockDim.y, begin = int64(blockIdx.x) * blockDim.y;
  const int64 initial = call.h0 ? call.first : 0;  // rows of inputs that come from h0
  for (int64 m = begin; m < rows; m += stride) {
    const int64 row = m + threadIdx.y;
    Element x[PairsGradient<Stored, C>::kBits][R], g[R] = {};
    for (int r = 0; r < R; ++r) x[0][r] = Element{};
    if (row < rows) {
      load_cells<R>(static_cast<const Stored*>(call.delta) + row * width, call.size, n, g);
      if (row < initial)
        load_cells<R>(static_cast<const real*>(call.h0) + row * width, call.size, n, x[0]);
      else
        load_cells<R>(static_cast<const Stored*>(call.states) + (row - initial) * width, call.size, n, x[0]);
    }
    gradient.row(x, g);
  }
  gradient.store(static_cast<real*>(call.d_factors) + blockIdx.x * 4 * C * call.bits);
}
