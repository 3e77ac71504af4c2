// The recurrence and the product for factors of any sizes: a sequence stays in shared memory, or in its
// place of the workspace, from the first step to the last. A thread works on the elements threadIdx.x,
// threadIdx.x + blockDim.x, .. wherever it works on single elements, so these need no barrier.

#include "stages.cuh"

template <class Stored, int C>
__global__ void __launch_bounds__(kStageThreads, 1) stages_forward(Call call) {
  using Element = typename Stages<Stored, C>::Element;
  using real = Real<Stored>;
  const Sequence at(call.batch);
  const int64 width = C * call.size;
  const Stages<Stored, C> w(call, 3);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  Element* h = w.vector(0);
  for (int n = threadIdx.x; n < call.size; n += blockDim.x)
    load_cells<1>(static_cast<const real*>(call.h0) + at.b * width, call.size, n, h + n);
  for (int64 t = 0; t < call.steps; ++t) {
    __syncthreads();
    const Element* product = w.apply(call.plan, h, w.vector(1), w.vector(2));
    for (int n = threadIdx.x; n < call.size; n += blockDim.x) {
      Element z = product[n], u;
      read_input<Stored>(call, call.size, t, at.b, n, u);
      add(z, u);
      activate(z, read_bias<real, C>(call, n), call.activation);
      if (t < length) h[n] = z;
      if (call.states && at.real_one)
        store_cells<1>(h + n, call.size, n,
                       static_cast<Stored*>(call.states) + (t * call.batch + at.b) * width);
    }
  }
  for (int n = threadIdx.x; n < call.size && at.real_one; n += blockDim.x)
    store_cells<1>(h + n, call.size, n, static_cast<real*>(call.last) + at.b * width);
}

// The sweep back: delta_t for all t, the gradients of h0 and, still a row a sequence, of the bias.
template <class Stored, int C>
__global__ void __launch_bounds__(kStageThreads, 1) stages_backward(Call call) {
  using Element = typename Stages<Stored, C>::Element;
  using real = Real<Stored>;
  const Sequence at(call.batch);
  const int64 width = C * call.size;
  const Stages<Stored, C> adjoint(call, 3);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  const int bias_parts = call.activation == kModrelu ? 1 : C;
  Element *g = adjoint.vector(0), *delta = adjoint.vector(1);
  for (int n = threadIdx.x; n < call.size; n += blockDim.x) {
    g[n] = Element{};
    if (call.d_last)
      load_cells<1>(static_cast<const real*>(call.d_last) + at.b * width, call.size, n, g + n);
    if (at.real_one) store_bias_gradient(call, at.b, n, Element{});
  }
  for (int64 t = call.steps - 1; t >= 0; --t) {
    const int64 row = (t * call.batch + at.b) * width;
    const bool live = t < length;
    for (int n = threadIdx.x; n < call.size; n += blockDim.x) {
      Element h, outside, d_bias = {};
      if (call.d_states) {
        load_cells<1>(static_cast<const Stored*>(call.d_states) + row, call.size, n, &outside);
        add(g[n], outside);
      }
      load_cells<1>(static_cast<const Stored*>(call.states) + row, call.size, n, &h);
      delta[n] = live ? g[n] : Element{};
      descend(delta[n], h, read_bias<real, C>(call, n), call.activation, d_bias);
      if (!at.real_one) continue;
      store_cells<1>(delta + n, call.size, n, static_cast<Stored*>(call.delta) + row);
      real* sums = static_cast<real*>(call.d_bias) + at.b * bias_parts * call.size;
      for (int c = 0; c < bias_parts; ++c) sums[c * call.size + n] += d_bias.v[c];
    }
    __syncthreads();
    const Element* product = adjoint.apply(call.plan, delta, delta, adjoint.vector(2));
    for (int n = threadIdx.x; n < call.size; n += blockDim.x)
      if (live) g[n] = product[n];
  }
  for (int n = threadIdx.x; n < call.size && at.real_one; n += blockDim.x)
    store_cells<1>(g + n, call.size, n, static_cast<real*>(call.d_h0) + at.b * width);
}

// states = W x, row by row; here call.size is the size of a result, call.plan.columns that of a row of x.
template <class Stored, int C>
__global__ void __launch_bounds__(kStageThreads, 1) stages_product(Call call) {
  using Element = typename Stages<Stored, C>::Element;
  const Stages<Stored, C> w(call, 3);
  const int64 rows = call.steps * call.batch;
  const int64 stride = int64(gridDim.x) * blockDim.y, begin = int64(blockIdx.x) * blockDim.y;
  for (int64 m = begin; m < rows; m += stride) {  // the same number of turns for all of a block
    const int64 row = m + threadIdx.y;
    for (int n = threadIdx.x; n < call.plan.columns && row < rows; n += blockDim.x)
      load_cells<1>(static_cast<const Stored*>(call.x) + row * C * call.plan.columns, call.plan.columns, n,
                    w.vector(0) + n);
    __syncthreads();
    const Element* product = w.apply(call.plan, w.vector(0), w.vector(1), w.vector(2));
    for (int n = threadIdx.x; n < call.size && row < rows; n += blockDim.x)
      store_cells<1>(product + n, call.size, n, static_cast<Stored*>(call.states) + row * C * call.size);
  }
}
