// Runs CUDA kernels on the CPU, for tests: the threads of a block are threads, barriers are barriers,
// and blocks run one after the other. Shared memory starts as NaN, and writes beyond what a launch asked
// for are errors. With KRON_NO_BARRIERS, __syncthreads does nothing, so that a test of races can fail.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

using std::sqrt;
using std::tanh;

#define __device__
#define __global__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
};
inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr size_t kSharedLimit = 232448;  // an H100's
alignas(16) inline unsigned char shared_bytes[kSharedLimit + 4096];

inline void require(bool condition, const char* message) {
  if (condition) return;
  std::fprintf(stderr, "cuda_on_cpu: %s\n", message);
  std::abort();
}

class Barrier {
 public:
  explicit Barrier(unsigned count) { pthread_barrier_init(&barrier_, nullptr, count); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};
struct Warp {
  Barrier barrier{32};
  double slots[32];
};
inline std::unique_ptr<Barrier> block_barrier;
inline std::vector<std::unique_ptr<Warp>> warps;

inline void __syncthreads() {
#ifndef KRON_NO_BARRIERS
  block_barrier->wait();
#endif
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  require(mask == ~0u, "a shuffle without all lanes");
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  Warp& warp = *warps[thread / 32];
  std::memcpy(&warp.slots[thread % 32], &value, sizeof(T));
  warp.barrier.wait();
  std::memcpy(&value, &warp.slots[thread % 32 ^ lane_mask], sizeof(T));
  warp.barrier.wait();
  return value;
}

inline float __uint_as_float(unsigned bits) {
  float a;
  std::memcpy(&a, &bits, sizeof(a));
  return a;
}
inline unsigned __float_as_uint(float a) {
  unsigned bits;
  std::memcpy(&bits, &a, sizeof(a));
  return bits;
}
inline float half_to_float(unsigned short bits) {
  _Float16 a;
  std::memcpy(&a, &bits, sizeof(a));
  return a;
}
inline unsigned short float_to_half(float a) {
  const _Float16 half = static_cast<_Float16>(a);
  unsigned short bits;
  std::memcpy(&bits, &half, sizeof(bits));
  return bits;
}
inline void fetch_to_l2(const void* address) {  // reads, so that an address out of bounds is found
  static_cast<void>(*static_cast<const volatile char*>(address));
}
inline float rsqrtf(float a) { return 1 / std::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }

template <class Kernel, class Arguments>
void run_on_cpu(Kernel kernel, dim3 grid, dim3 block, size_t shared, const Arguments& arguments) {
  const unsigned count = block.x * block.y;
  require(count % 32 == 0 && count <= 1024, "a block has to be of whole warps, of 1024 threads at most");
  require(shared <= kSharedLimit, "more shared memory than a block can have");
  gridDim = grid, blockDim = block;
  block_barrier = std::make_unique<Barrier>(count);
  warps.clear();
  for (unsigned w = 0; w < count / 32; ++w) warps.push_back(std::make_unique<Warp>());
  for (unsigned b = 0; b < grid.x; ++b) {
    std::memset(shared_bytes, 0xff, sizeof(shared_bytes));
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < count; ++i)
      threads.emplace_back([=] {
        threadIdx = {i % block.x, i / block.x, 0}, blockIdx = {b, 0, 0};
        kernel(arguments);
      });
    for (std::thread& thread : threads) thread.join();
    for (size_t i = shared; i < sizeof(shared_bytes); ++i)
      require(shared_bytes[i] == 0xff, "a write beyond the shared memory of the launch");
  }
}
