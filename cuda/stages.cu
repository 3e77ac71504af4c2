// The recurrence of any cell, and the product, for factors of any sizes. A sequence stays in shared memory, or
// in its part of the workspace, from the first step to the last. In work on single units, a thread always has
// the units threadIdx.x, threadIdx.x + blockDim.x, .., so this needs no barrier. The cell is `struct Cell` of a
// header in cells/, which is included before this file.

#include "stages.cuh"

constexpr int S = Cell::kStates, K = Cell::kProducts, J = Cell::kBiases;

// Vectors of a block: the state or its gradient, two for the products to alternate between, and one
// for each product if there are several.
enum Vector { kState, kA = kState + S, kB, kProduct, kVectors = kProduct + (K > 1 ? K : 0) };

// W_k h, u_k and the bias of one unit.
template <class Element>
struct Inputs {
  Element recurrent[K], u[K], bias[J];
};
template <class Stored, int C, class Element>
__device__ inline void read_inputs(const Call& call, int64 t, int64 b, int64 n, Inputs<Element>& inputs) {
  for (int k = 0; k < K; ++k) read_input<Stored>(call, K * call.size, t, b, k * call.size + n, inputs.u[k]);
  for (int j = 0; j < J; ++j)
    inputs.bias[j] = read_bias<Real<Stored>, C>(call, Cell::template bias_parts<C>(call), j, n);
}

template <class Stored, int C>
__global__ void __launch_bounds__(kStageThreads, 1) stages_forward(Call call) {
  static_assert(C == 1 || K == 1, "only a cell of one product can be complex");
  static_assert(!Cell::kFromOutput || (S == 1 && J == 1), "the output is not all that the sweep back needs");
  using Element = typename Stages<Stored, C>::Element;
  using real = Real<Stored>;
  const Sequence at(call.batch);
  const int64 size = call.size, width = C * size, row = at.b * width, rows = call.batch * width;
  const Stages<Stored, C> w(call, kVectors);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  for (int n = threadIdx.x; n < size; n += blockDim.x)
    for (int s = 0; s < S; ++s)
      load_elements<1>(static_cast<const real*>(call.initial) + s * rows + row, size, n, w.vector(s) + n);
  for (int64 t = 0; t < call.steps; ++t) {
    const Element* product;
    for (int k = 0; k < K; ++k) {
      __syncthreads();  // h is complete, and all threads have read the last product
      product = w.apply(call.plans[k], w.vector(kState), w.vector(kA), w.vector(kB));
      if (K > 1)
        for (int n = threadIdx.x; n < size; n += blockDim.x) w.vector(kProduct + k)[n] = product[n];
    }
    for (int n = threadIdx.x; n < size; n += blockDim.x) {
      Inputs<Element> inputs;
      read_inputs<Stored, C>(call, t, at.b, n, inputs);
      Element state[S];
      for (int k = 0; k < K; ++k) inputs.recurrent[k] = K > 1 ? w.vector(kProduct + k)[n] : product[n];
      for (int s = 0; s < S; ++s) {
        state[s] = w.vector(s)[n];
        if (call.kept && at.real_one)
          store_elements<1>(&state[s], size, n, static_cast<real*>(call.kept) + (t * S + s) * rows + row);
      }
      Cell::step(inputs.recurrent, inputs.u, inputs.bias, state, call.activation);
      for (int s = 0; s < S && t < length; ++s) w.vector(s)[n] = state[s];
      if (call.outputs && at.real_one)
        store_elements<1>(w.vector(kState) + n, size, n, static_cast<Stored*>(call.outputs) + t * rows + row);
    }
  }
  for (int n = threadIdx.x; n < size && at.real_one; n += blockDim.x)
    for (int s = 0; s < S; ++s)
      store_elements<1>(w.vector(s) + n, size, n, static_cast<real*>(call.last) + s * rows + row);
}

// The backward sweep: delta_t for all t, the gradient of the initial state and, with one row per sequence, that
// of the bias. It needs h_t for a cell with `kFromOutput`, else the state before each step and W_k h.
template <class Stored, int C>
__global__ void __launch_bounds__(kStageThreads, 1) stages_backward(Call call) {
  using Element = typename Stages<Stored, C>::Element;
  using real = Real<Stored>;
  const Sequence at(call.batch);
  const int64 size = call.size, width = C * size, row = at.b * width, rows = call.batch * width;
  const Stages<Stored, C> adjoint(call, kVectors);
  const int64 length = call.lengths ? call.lengths[at.b] - call.first : call.steps;
  const int bias_parts = Cell::bias_parts<C>(call), first_delta = K > 1 ? kProduct : kA;
  for (int n = threadIdx.x; n < size; n += blockDim.x) {
    for (int s = 0; s < S; ++s) {
      adjoint.vector(s)[n] = Element{};
      if (call.d_last)
        load_elements<1>(static_cast<const real*>(call.d_last) + s * rows + row, size, n, adjoint.vector(s) + n);
    }
    for (int c = 0; call.d_bias && at.real_one && c < bias_parts; ++c)
      *bias_gradient<real>(call, bias_parts, c, at.b, n) = 0;
  }
  for (int64 t = call.steps - 1; t >= 0; --t) {
    const bool live = t < length;
    const int64 wide = t * K * rows + at.b * K * width;  // start of a row of K W numbers
    for (int n = threadIdx.x; n < size; n += blockDim.x) {
      Inputs<Element> inputs = {};
      Element total[S], before[S] = {}, h = {};
      for (int s = 0; s < S; ++s) total[s] = adjoint.vector(s)[n];
      if (call.d_outputs) {
        Element outside;
        load_elements<1>(static_cast<const Stored*>(call.d_outputs) + t * rows + row, size, n, &outside);
        add(total[0], outside);
      }
      if constexpr (Cell::kFromOutput) {
        load_elements<1>(static_cast<const Stored*>(call.outputs) + t * rows + row, size, n, &h);
        inputs.bias[0] = read_bias<real, C>(call, bias_parts, 0, n);
      } else {
        read_inputs<Stored, C>(call, t, at.b, n, inputs);
        for (int k = 0; k < K; ++k)
          inputs.recurrent[k].v[0] = static_cast<const real*>(call.recurrent)[wide + k * size + n];
        for (int s = 0; s < S; ++s)
          load_elements<1>(static_cast<const real*>(call.kept) + (t * S + s) * rows + row, size, n, &before[s]);
      }
      Derivative<Element, Cell> d = Cell::derivative(inputs.recurrent, inputs.u, inputs.bias, before, h, total,
                                                     call.activation);
      if (!live) {  // whatever is beyond a sequence's end
        d = {};
        for (int s = 0; s < S; ++s) d.state[s] = total[s];
      }
      for (int s = 0; s < S; ++s) adjoint.vector(s)[n] = d.state[s];
      for (int k = 0; k < K; ++k) {
        adjoint.vector(first_delta + k)[n] = d.delta[k];
        if (!at.real_one) continue;
        store_elements<1>(&d.delta[k], K * size, k * size + n, static_cast<real*>(call.delta) + wide);
        if constexpr (Cell::kSplits)
          store_elements<1>(&d.input[k], K * size, k * size + n, static_cast<real*>(call.d_input) + wide);
      }
      for (int c = 0; call.d_bias && at.real_one && c < bias_parts; ++c)
        *bias_gradient<real>(call, bias_parts, c, at.b, n) += d.bias.v[c];
    }
    for (int k = 0; k < K; ++k) {
      __syncthreads();
      const Element* product =
          adjoint.apply(call.plans[k], adjoint.vector(first_delta + k), adjoint.vector(kA), adjoint.vector(kB));
      for (int n = threadIdx.x; n < size && live; n += blockDim.x) add(adjoint.vector(kState)[n], product[n]);
    }
  }
  for (int n = threadIdx.x; n < size && at.real_one; n += blockDim.x)
    for (int s = 0; s < S; ++s)
      store_elements<1>(adjoint.vector(s) + n, size, n, static_cast<real*>(call.d_initial) + s * rows + row);
}

// outputs = W x, row by row. Here call.size is the size of a result, `columns` that of a row of x.
template <class Stored, int C>
__global__ void __launch_bounds__(kStageThreads, 1) stages_product(Call call) {
  using Element = typename Stages<Stored, C>::Element;
  const Stages<Stored, C> w(call, kProductVectors);
  const Plan& plan = call.plans[0];
  const int64 rows = call.steps * call.batch;
  const int64 stride = int64(gridDim.x) * blockDim.y, begin = int64(blockIdx.x) * blockDim.y;
  for (int64 m = begin; m < rows; m += stride) {  // the same number of turns for all threads of a block
    const int64 row = m + threadIdx.y;
    for (int n = threadIdx.x; n < plan.columns && row < rows; n += blockDim.x)
      load_elements<1>(static_cast<const Stored*>(call.x) + row * C * plan.columns, plan.columns, n,
                       w.vector(0) + n);
    __syncthreads();
    const Element* product = w.apply(plan, w.vector(0), w.vector(1), w.vector(2));
    for (int n = threadIdx.x; n < call.size && row < rows; n += blockDim.x)
      store_elements<1>(product + n, call.size, n, static_cast<Stored*>(call.outputs) + row * C * call.size);
  }
}
