// Features of one sequence times their weights, for lanes of units.
//
// Several steps at a time, or each step would read all weights once, and write their gradients. The weights are
// packed: those of one element follow one another.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "layout.h"

// `size` is how many cells an input fills; W = C size. Tensors are contiguous.
struct InputTensors {
  int64_t steps, batch, size;
  int64_t inputs;         // 0 dense x, -1 tokens, else features (I)
  int64_t token_rows;     // rows of the weight table
  const real* x;          // (T, B, W) or (T, B, I)
  const int64_t* tokens;  // (T, B)
  const real* weight;     // (I, W)
  real* d_x;              // as x, or null
};

constexpr int kSteps = 8;           // at a time
constexpr int kLeastProjected = 3;  // features that are worth it

// The features of steps t..t+kSteps-1 as (I, kSteps); 0 after the last step.
inline void gather_steps(const InputTensors& of, int64_t sequence, int64_t t, real* to) {
  for (int s = 0; s < kSteps; ++s)
    for (int64_t i = 0; i < of.inputs; ++i)
      to[i * kSteps + s] = t + s < of.steps ? of.x[((t + s) * of.batch + sequence) * of.inputs + i] : 0;
}

class Projection {
 public:
  Projection(const InputTensors& of, Arena& arena)
      : of_(of),
        elements_(of.size / kWide),
        packed_(arena.take<Element<kWide>>(elements_ * of.inputs)),
        u_(arena.take<Element<kWide>>(kSteps * elements_)),
        x_(arena.take<real>(kSteps * of.inputs)) {
    for (int64_t n = 0; n < elements_; ++n)
      for (int64_t i = 0; i < of.inputs; ++i)
        packed_[n * of.inputs + i] = of_units<OfUnits>(of.weight + i * C * of.size, of.size, n);
  }
  const Element<kWide>* packed() const { return packed_; }
  void begin(int64_t sequence) {
    sequence_ = sequence;
    first_ = -1;
  }
  // u_t
  const Element<kWide>* operator()(int64_t t) {
    const int64_t first = t - t % kSteps;
    if (first != first_ || of_.steps == 1) project(first);  // a stream has one step after the other at t = 0
    first_ = first;
    return u_ + (t - first) * elements_;
  }

 private:
  KRON_OUTLINE void project(int64_t t) {
    gather_steps(of_, sequence_, t, x_);
    for (int64_t n = 0; n < elements_; ++n) {
      Element<kWide> sum[kSteps] = {};
      const Element<kWide>* w = packed_ + n * of_.inputs;
      for (int64_t i = 0; i < of_.inputs; ++i)
#pragma GCC unroll 8
        for (int s = 0; s < kSteps; ++s)
          for (int c = 0; c < C; ++c) sum[s].v[c] += w[i].v[c] * x_[i * kSteps + s];
#pragma GCC unroll 8
      for (int s = 0; s < kSteps; ++s) u_[s * elements_ + n] = sum[s];
    }
  }
  const InputTensors& of_;
  const int64_t elements_;
  Element<kWide>*const packed_, *const u_;
  real* const x_;
  int64_t sequence_ = 0, first_ = -1;
};

class ProjectionGradient {
 public:
  ProjectionGradient(const InputTensors& of, const Element<kWide>* weights, Arena& arena)
      : of_(of),
        elements_(of.size / kWide),
        weights_(weights),
        d_weight_(arena.sums<Element<kWide>>(elements_ * of.inputs)),
        delta_(arena.sums<Element<kWide>>(kSteps * elements_)),
        x_(arena.take<real>(kSteps * of.inputs)) {}

  // Takes delta_t, with t falling to 0.
  void operator()(int64_t t, int64_t sequence, const Element<kWide>* delta) {
    std::copy_n(delta, elements_, delta_ + t % kSteps * elements_);
    if (t % kSteps) return;
    gather_steps(of_, sequence, t, x_);
    add_weights();
    if (of_.d_x) put_inputs(t, sequence);
  }
  // Adds the sums to an array (I, C, units).
  void finish(double* to) const {
    for (int64_t n = 0; n < elements_; ++n)
      for (int64_t i = 0; i < of_.inputs; ++i)
        for (int c = 0; c < C; ++c)
          OfUnits::add_units(d_weight_[n * of_.inputs + i].v[c], n, to + (i * C + c) * of_.size);
  }

 private:
  // Before the first whole block, the deltas after the last step are 0, as their features are.
  KRON_OUTLINE void add_weights() {
    for (int64_t n = 0; n < elements_; ++n) {
      Element<kWide> delta[kSteps];
#pragma GCC unroll 8
      for (int s = 0; s < kSteps; ++s) delta[s] = delta_[s * elements_ + n];
      Element<kWide>* sums = d_weight_ + n * of_.inputs;
      for (int64_t i = 0; i < of_.inputs; ++i) {
        Element<kWide> sum = sums[i];
#pragma GCC unroll 8
        for (int s = 0; s < kSteps; ++s)
          for (int c = 0; c < C; ++c) sum.v[c] += delta[s].v[c] * x_[i * kSteps + s];
        sums[i] = sum;
      }
    }
  }
  KRON_OUTLINE void put_inputs(int64_t t, int64_t sequence) const {
    for (int64_t i = 0; i < of_.inputs; ++i) {
      Lanes<kWide> sum[kSteps] = {};
      for (int64_t n = 0; n < elements_; ++n)
#pragma GCC unroll 8
        for (int s = 0; s < kSteps; ++s) sum[s] += dot(weights_[n * of_.inputs + i], delta_[s * elements_ + n]);
      for (int64_t s = 0; s < std::min<int64_t>(kSteps, of_.steps - t); ++s)
        of_.d_x[((t + s) * of_.batch + sequence) * of_.inputs + i] = ::sum<kWide>(sum[s]);
    }
  }
  const InputTensors& of_;
  const int64_t elements_;
  const Element<kWide>* const weights_;
  Element<kWide>*const d_weight_, *const delta_;
  real* const x_;
};
