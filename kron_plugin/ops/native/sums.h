// Gradients that are sums over the batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "blocks.h"
#include "input.h"

// A thread's share of them.
struct Sums {
  std::vector<double> factors, bias;
  WeightSums weight;

  Sums(int64_t factor_entries, int64_t biases, const InputTensors& input)
      : factors(factor_entries), bias(biases), weight(input) {}
  void add(const Sums& other) {
    add_to(other.factors, factors);
    add_to(other.bias, bias);
    weight.add(other.weight);
  }
};

// Runs backward(width, block, sums) on every block of the batch, each thread with sums of its own that
// start as zero() makes them; what they come to goes to the call. False if a thread ran out of memory.
template <class Call, class Zero, class Backward>
bool sum_over_blocks(const Call& call, Zero zero, Backward backward) {
  std::vector<std::optional<Sums>> sums(call.threads);
  const auto work = [&](auto width, const Block& block, int64_t thread) {
    if (!sums[thread]) sums[thread] = zero();
    backward(width, block, *sums[thread]);
  };
  if (!for_blocks(call.batch, call.threads, work)) return false;
  Sums& total = sums[0] ? *sums[0] : sums[0].emplace(zero());  // an empty batch has none
  for (int64_t thread = 1; thread < call.threads; ++thread)
    if (sums[thread]) total.add(*sums[thread]);
  std::copy(total.factors.begin(), total.factors.end(), call.d_factors);
  std::copy(total.bias.begin(), total.bias.end(), call.d_bias);
  total.weight.store(call.d_weight);
  return true;
}
