// Products with W = W_0 (x) .. (x) W_{F-1} of factors of any sizes, on vectors in shared memory or,
// if they are too long for that, in a workspace in device memory.
//
// A product is a sequence of passes (`Stage`), each over one digit of the index or a few neighbouring
// ones: a dense p x q factor, or up to kMaxRun neighbouring 2x2 factors as butterflies in a thread's
// registers. A vector has the shape (outer, q, inner) before a pass and (outer, p, inner) after it.
// threadIdx.x counts within a sequence, threadIdx.y the sequences of a block.
#pragma once

#include "step.cuh"

constexpr int kMaxRun = 3;   // 2x2 factors done in one pass
constexpr int kRows = 4;     // rows of a dense factor summed together, so that the input is read once
constexpr int kStageThreads = 512;
constexpr int kProductVectors = 3;  // of a block: x, and two that a product alternates between

template <class Stored, int C>
class Stages {
 public:
  using real = Real<Stored>;
  using Element = Number<real, C>;

  // `count` vectors of call.capacity elements each. Shared memory holds the first call.cached entries
  // of the factors (all or none), and then the vectors, unless there is a workspace for the vectors of all
  // sequences.
  __device__ Stages(const Call& call, int count) : capacity_(call.capacity) {
    Element* shared = shared_memory<Element>();
    factors_ = static_cast<const Element*>(call.factors);
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = thread; i < call.cached; i += blockDim.x * blockDim.y) shared[i] = factors_[i];
    if (call.cached) factors_ = shared;
    const int64 block = call.workspace ? blockIdx.x : 0;
    vectors_ = call.workspace ? static_cast<Element*>(call.workspace) : shared + call.cached;
    vectors_ += (block * blockDim.y + threadIdx.y) * count * call.capacity;
    __syncthreads();
  }
  __device__ Element* vector(int i) const { return vectors_ + i * capacity_; }

  // W times the vector `from`. The result is in `a` or `b`, and its address is returned; `from` may be `a`. All
  // threads of a block call this together. `from` must be complete before; the result is complete after.
  __device__ const Element* apply(const Plan& plan, const Element* from, Element* a, Element* b) const {
    unsigned outer = plan.columns, inner = 1;
    for (int s = 0; s < plan.count; ++s) {
      const Stage stage = plan.stages[s];
      Element* to = from == a ? b : a;
      outer /= stage.q;
      if (stage.bits == 3) butterflies<3>(stage, outer, inner, from, to);
      if (stage.bits == 2) butterflies<2>(stage, outer, inner, from, to);
      if (stage.bits == 1) butterflies<1>(stage, outer, inner, from, to);
      if (stage.bits == 0) dense(stage, outer, inner, from, to);
      inner *= stage.p;
      __syncthreads();
      from = to;
    }
    return from;
  }

 private:
  template <int B>
  __device__ void butterflies(const Stage& stage, unsigned outer, unsigned inner, const Element* from,
                              Element* to) const {
    Element w[B][4];
#pragma unroll
    for (int k = 0; k < B; ++k)  // entries are column by column; the lowest digit's factor is last
#pragma unroll
      for (int i = 0; i < 4; ++i) w[k][i] = factors_[stage.offset - 4 * k + i];
    for (unsigned item = threadIdx.x; item < outer * inner; item += blockDim.x) {
      const unsigned begin = item / inner * (inner << B) + item % inner;
      Element v[1 << B];
#pragma unroll
      for (int j = 0; j < 1 << B; ++j) v[j] = from[begin + j * inner];
#pragma unroll
      for (int k = 0; k < B; ++k)
#pragma unroll
        for (int j = 0; j < 1 << B; ++j)
          if (!(j >> k & 1)) {
            const Element low = v[j], high = v[j | 1 << k];
            v[j] = combine(w[k][0], low, w[k][2], high);
            v[j | 1 << k] = combine(w[k][1], low, w[k][3], high);
          }
#pragma unroll
      for (int j = 0; j < 1 << B; ++j) to[begin + j * inner] = v[j];
    }
  }

  __device__ void dense(const Stage& stage, unsigned outer, unsigned inner, const Element* from,
                        Element* to) const {
    const unsigned p = stage.p, q = stage.q, row_blocks = (p + kRows - 1) / kRows;
    for (unsigned item = threadIdx.x; item < outer * row_blocks * inner; item += blockDim.x) {
      const unsigned i = item % inner, first = item / inner % row_blocks * kRows;
      const unsigned o = item / inner / row_blocks;
      const Element* x = from + o * q * inner + i;
      const Element* w = factors_ + stage.offset + first;
      Element sums[kRows] = {};
      for (unsigned j = 0; j < q; ++j)
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (first + r < p) mac(sums[r], w[j * p + r], x[j * inner]);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (first + r < p) to[(o * p + first + r) * inner + i] = sums[r];
    }
  }

  const int64 capacity_;
  const Element* factors_;
  Element* vectors_;
};
