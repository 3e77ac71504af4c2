// The rate of multiply-adds with nothing else in the way: 12 independent chains in registers.
#include <thread>
#include <vector>

typedef float Lanes __attribute__((vector_size(64)));

static void chains(int steps, float* result) {
  constexpr int kChains = 12;
  Lanes x[kChains], scale = Lanes{} + 0.999f, shift = Lanes{} + 0.001f;
  for (int i = 0; i < kChains; ++i) x[i] = Lanes{} + float(i);
  for (int step = 0; step < steps / kChains; ++step)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) x[i] = x[i] * scale + shift;
  for (int i = 1; i < kChains; ++i) x[0] += x[i];
  *result = x[0][0];
}

// Runs `steps` vector multiply-adds on each thread; returns how many numbers a vector holds.
extern "C" int multiply_adds(int steps, int threads) {
  std::vector<float> results(threads);
  std::vector<std::thread> pool;
  for (float& result : results) pool.emplace_back(chains, steps, &result);
  for (std::thread& thread : pool) thread.join();
  return sizeof(Lanes) / sizeof(float);
}
