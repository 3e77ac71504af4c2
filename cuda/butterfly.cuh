// Products with W = W_0 (x) .. (x) W_{F-1} of 2x2 factors, N = 2^F, on a vector held in registers.
//
// A thread holds R = 4 neighbouring elements, so the digits of the index n are, from the lowest:
// 2 bits inside the thread, up to 5 bits of the lane, up to 3 bits of the warp. Factor f works on bit
// F-1-f. Bits of the thread and of the lane take one stage of butterflies each, in registers or by
// shuffle; all bits of the warp take one stage through shared memory. Sequences of up to 32 threads
// share a warp: threadIdx.x counts within a sequence, threadIdx.y the sequences of a block.
#pragma once

#include "step.cuh"

constexpr int R = 4, kThreadBits = 2, kLaneBits = 5, kWarpBits = 3;
constexpr int kProductThreads = 512, kGradientThreads = 256;  // on a multiprocessor, in loops over rows

// Constants that depend on F.
template <int F>
struct ButterflySize {
  static_assert(F >= kThreadBits && F <= kThreadBits + kLaneBits + kWarpBits, "no such kernel");
  static constexpr int kSize = 1 << F, kThreads = kSize / R;
  static constexpr int kLanes = F - kThreadBits < kLaneBits ? F - kThreadBits : kLaneBits;
  static constexpr int kWarps = F - kThreadBits - kLanes;  // in bits, as kLanes
  static constexpr int kBlock = kThreads < 32 ? 32 : kThreads;
};

// Reads elements of other threads: those of the thread whose index differs in the given bits.
template <class real, int C, int F>
class Exchange {
 public:
  using Element = Number<real, C>;
  static constexpr int kSize = ButterflySize<F>::kSize;

  __device__ void lane(int bit, const Element* v, Element* other) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) other[r].v[c] = __shfl_xor_sync(~0u, v[r].v[c], 1 << bit);
  }
  // Writes all warps' elements for `warp` to read. Two buffers take turns, so that one barrier is enough:
  // before a buffer is written again, all threads pass the barrier of the other buffer, and they read this
  // one before that barrier.
  __device__ void share(const Element* v) {
    turn_ ^= C * kSize;
    store_elements<R>(v, kSize, threadIdx.x * R, shared_memory<real>() + turn_);
    __syncthreads();
  }
  __device__ void warp(int bits, Element* other) const {
    load_elements<R>(shared_memory<real>() + turn_, kSize, (threadIdx.x ^ bits << kLaneBits) * R, other);
  }

 private:
  int turn_ = 0;
};

// W. Each thread has the entries that it needs in registers.
template <class Stored, int C, int F>
class Butterfly {
 public:
  using real = Real<Stored>;
  using Element = Number<real, C>;
  static constexpr int kLanes = ButterflySize<F>::kLanes, kWarps = ButterflySize<F>::kWarps;

  __device__ explicit Butterfly(const Call& call) {
    const auto entry = [&](int j, int p, int q) {
      const Element* factor = static_cast<const Element*>(call.factors) + 4 * (F - 1 - j);
      return call.adjoint ? conj(factor[2 * q + p]) : factor[2 * p + q];
    };
#pragma unroll
    for (int j = 0; j < kThreadBits; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) thread_[j][i] = entry(j, i / 2, i % 2);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const int mine = threadIdx.x >> k & 1;
      own_[k] = entry(kThreadBits + k, mine, mine);
      others_[k] = entry(kThreadBits + k, mine, 1 - mine);
    }
#pragma unroll
    for (int flipped = 0; flipped < 1 << kWarps; ++flipped) {
      across_[flipped] = Element{};
      across_[flipped].v[0] = 1;
#pragma unroll
      for (int k = 0; k < kWarps; ++k) {
        const int mine = threadIdx.x >> (kLaneBits + k) & 1;
        Element product = {};
        mac(product, across_[flipped],
            entry(kThreadBits + kLaneBits + k, mine, mine ^ (flipped >> k & 1)));
        across_[flipped] = product;
      }
    }
  }
  // v becomes W v.
  __device__ void apply(Element* v) {
#pragma unroll
    for (int j = 0; j < kThreadBits; ++j)
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (!(r >> j & 1)) {
          const Element low = v[r], high = v[r | 1 << j];
          v[r] = combine(thread_[j][0], low, thread_[j][1], high);
          v[r | 1 << j] = combine(thread_[j][2], low, thread_[j][3], high);
        }
    Element other[R];
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      exchange_.lane(k, v, other);
#pragma unroll
      for (int r = 0; r < R; ++r) v[r] = combine(own_[k], v[r], others_[k], other[r]);
    }
    if constexpr (kWarps > 0) {
      exchange_.share(v);
      Element sums[R] = {};
#pragma unroll
      for (int flipped = 0; flipped < 1 << kWarps; ++flipped) {
        if (flipped > 0) exchange_.warp(flipped, other);
#pragma unroll
        for (int r = 0; r < R; ++r) mac(sums[r], across_[flipped], flipped > 0 ? other[r] : v[r]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) v[r] = sums[r];
    }
  }

 private:
  // Entries of this thread's rows: in the columns of its own element and of its partner's. Across warps,
  // they are of the product of the factors, in the columns where some bits are flipped.
  Element thread_[kThreadBits][4], own_[kLanes > 0 ? kLanes : 1], others_[kLanes > 0 ? kLanes : 1];
  Element across_[1 << kWarps];
  Exchange<real, C, F> exchange_;
};
