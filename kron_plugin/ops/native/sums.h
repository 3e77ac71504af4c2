// Gradients that are sums over the batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "blocks.h"
#include "input.h"

// One thread's share of these gradients.
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

// Runs every block backwards by a Worker. Each thread has its own sums; their total goes to the call.
// `entries` and `biases` are how many numbers factors and bias have.
template <template <class> class Worker, class Call>
void sum_over_blocks(const Call& call, Running& running, const Shares& shares, const InputTensors& input,
                     int64_t entries, int64_t biases) {
  std::deque<Sums> sums;  // at least one, even for an empty batch
  for (int64_t thread = 0; thread < std::max<int64_t>(shares.threads, 1); ++thread)
    sums.emplace_back(entries, biases, input);
  for_blocks<Worker>(shares, running, [&](auto layout, int64_t thread) {
    return std::make_unique<Worker<decltype(layout)>>(call, sums[thread]);
  });
  if (running.stopped()) return;
  Sums& total = sums[0];
  for (size_t thread = 1; thread < sums.size(); ++thread) total.add(sums[thread]);
  std::copy(total.factors.begin(), total.factors.end(), call.d_factors);
  std::copy(total.bias.begin(), total.bias.end(), call.d_bias);
  total.weight.store(call.d_weight);
}
