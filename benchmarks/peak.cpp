// What the processor can do with nothing else in the way: multiply-adds in registers, and reading and writing
// an array.
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

typedef float Lanes __attribute__((vector_size(64)));

template <class Work>
static void on_threads(int threads, Work work) {
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) pool.emplace_back(work, i);
  for (std::thread& thread : pool) thread.join();
}

// 12 independent chains.
static float chains(int steps) {
  constexpr int kChains = 12;
  Lanes x[kChains], scale = Lanes{} + 0.999f, shift = Lanes{} + 0.001f;
  for (int i = 0; i < kChains; ++i) x[i] = Lanes{} + float(i);
  for (int step = 0; step < steps / kChains; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = x[i] * scale + shift;
  for (int i = 1; i < kChains; ++i) x[0] += x[i];
  return x[0][0];
}

static float sum(const Lanes* data, int64_t count) {
  constexpr int kSums = 8;
  Lanes sums[kSums] = {};
  for (int64_t n = 0; n + kSums <= count; n += kSums)
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) sums[i] += data[n + i];
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  return sums[0][0];
}

// Runs `steps` vector multiply-adds on each thread; returns how many numbers a vector holds.
extern "C" int multiply_adds(int steps, int threads) {
  std::vector<float> results(threads);
  on_threads(threads, [&](int i) { results[i] = chains(steps); });
  return sizeof(Lanes) / sizeof(float);
}

// Sets an array to 0, in large pages if it is new, as the kernels use them.
extern "C" void begin_array(char* array, int64_t bytes) {
  constexpr int64_t kPage = 4096;
  madvise(array + kPage - reinterpret_cast<uintptr_t>(array) % kPage, bytes - kPage, MADV_HUGEPAGE);
  std::memset(array, 0, bytes);
}

// Both go `times` over an array; each thread has its own part. The sums are stored, or they would not be
// computed.
extern "C" void read_array(const Lanes* array, int64_t bytes, int times, int threads, float* sums) {
  const int64_t count = bytes / threads / sizeof(Lanes);
  on_threads(threads, [&](int i) {
    for (int time = 0; time < times; ++time) sums[i] += sum(array + i * count, count);
  });
}
extern "C" void write_array(Lanes* array, int64_t bytes, int times, int threads) {
  const int64_t count = bytes / threads / sizeof(Lanes);
  on_threads(threads, [&](int i) {
    for (int time = 0; time < times; ++time)
      for (int64_t n = i * count; n < (i + 1) * count; ++n) {
        array[n] = Lanes{} + float(time);
        asm volatile("" ::"r"(array + n) : "memory");  // or it would become a memset, which is slower
      }
  });
}
