// Products with W = W_0 (x) .. (x) W_{F-1} of 2x2 factors, N = 2^F, on a vector held in registers.
//
// A thread holds R = 4 neighbouring elements, so the digits of the index n are, from the lowest:
// 2 bits inside the thread, up to 5 bits of the lane, up to kWarpBits bits of the warp. Factor f works
// on bit F-1-f, in a stage of butterflies: inside the thread, by shuffle, or through shared memory.
// Sequences of up to 32 threads share a warp: threadIdx.x counts within a sequence, threadIdx.y the
// sequences of a block.
#pragma once

#include "step.cuh"

constexpr int R = 4, kThreadBits = 2, kLaneBits = 5;

// How bits beyond the thread meet: element r of the thread whose index differs in one bit.
template <class real, int C>
class Exchange {
 public:
  __device__ void lane(int bit, const Cell<real, C>* v, Cell<real, C>* other) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) other[r].v[c] = __shfl_xor_sync(~0u, v[r].v[c], 1 << bit);
  }
  // Two buffers in turn, so that one barrier is enough: who writes a buffer again has passed the
  // barrier of the other one, which all readers of this one came to after they had read.
  __device__ void warp(int bit, const Cell<real, C>* v, Cell<real, C>* other) {
    real* buffer = shared_memory<real>() + turn_ * R * C * blockDim.x;
    const int x = threadIdx.x, partner = x ^ 1 << (kLaneBits + bit);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) buffer[(r * C + c) * blockDim.x + x] = v[r].v[c];
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) other[r].v[c] = buffer[(r * C + c) * blockDim.x + partner];
    turn_ ^= 1;
  }

 private:
  int turn_ = 0;
};

template <class Stored, int C>
struct PairsLimits {
  // Double precision takes twice the registers: it is there to check with, in a single warp.
  static constexpr int kWarpBits = sizeof(Stored) == 8 ? 0 : 3;
  static constexpr int kMaxBits = kThreadBits + kLaneBits + kWarpBits;
  static constexpr int kMaxThreads = 32 << kWarpBits;
};

// W, each thread with the entries it needs in registers.
template <class Stored, int C>
class Pairs {
 public:
  using real = Real<Stored>;
  using Element = Cell<real, C>;
  static constexpr int kWarpBits = PairsLimits<Stored, C>::kWarpBits;

  __device__ explicit Pairs(const Call& call) : bits_(call.bits) {
    const Element* factors = static_cast<const Element*>(call.factors) + 4 * (bits_ - 1);
#pragma unroll
    for (int j = 0; j < kThreadBits; ++j)
#pragma unroll
      for (int entry = 0; entry < 4; ++entry) thread_[j][entry] = factors[entry - 4 * j];
#pragma unroll
    for (int j = kThreadBits; j < PairsLimits<Stored, C>::kMaxBits; ++j)
      if (j < bits_) {
        const int mine = threadIdx.x >> (j - kThreadBits) & 1;
        own_[j - kThreadBits] = factors[3 * mine - 4 * j];
        others_[j - kThreadBits] = factors[mine + 1 - 4 * j];
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
    for (int k = 0; k < kLaneBits + kWarpBits; ++k)
      if (kThreadBits + k < bits_) {
        if (k < kLaneBits)
          exchange_.lane(k, v, other);
        else
          exchange_.warp(k - kLaneBits, v, other);
#pragma unroll
        for (int r = 0; r < R; ++r) v[r] = combine(own_[k], v[r], others_[k], other[r]);
      }
  }

 private:
  const int bits_;
  Element thread_[kThreadBits][4], own_[kLaneBits + kWarpBits], others_[kLaneBits + kWarpBits];
  Exchange<real, C> exchange_;
};
