// The input of a recurrence, one block of lanes at a time: dense rows, features or tokens; and its
// gradient.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "blocks.h"
#include "lanes.h"
#include "layout.h"
#include "project.h"

template <class Layout>
class Input {
  static constexpr int L = Layout::kLanes;

 public:
  Input(const InputTensors& tensors, Arena& arena)
      : of(tensors),
        features(of.inputs > 0 ? arena.take<Lanes<L>>(of.inputs) : nullptr),
        rows_(arena, of.inputs > 0 ? 0 : of.size) {
    if constexpr (Layout::kUnits > 1)
      if (of.inputs >= kLeastProjected) projection = std::make_unique<Projection>(of, arena);
  }

  const InputTensors of;
  Lanes<L>* const features;  // x_t of the block: one cell per input
  std::unique_ptr<Projection> projection;  // for lanes of units with more than a few features; else null

  void begin(const Block& block) {
    block_ = block;
    if (projection) projection->begin(block.begin);
  }
  // The index of the l-th sequence's row in tensors of shape (T, B, ..).
  int64_t row(int64_t t, int l) const { return t * of.batch + block_.begin + l; }

  void read_features(int64_t t) {
    for (int64_t i = 0; i < of.inputs; ++i) {
      real a[Layout::kSequences];
      for (int l = 0; l < Layout::kSequences; ++l) a[l] = of.x[row(t, l) * of.inputs + i];
      features[i] = Layout::spread(a);
    }
  }
  void read(int64_t t) {
    if (projection)
      u_ = (*projection)(t);
    else if (of.inputs > 0)
      read_features(t);
    else
      read_rows(t);
  }
  void read_rows(int64_t t) {
    const int64_t width = C * of.size;
    const real* rows[Layout::kSequences];
    for (int l = 0; l < Layout::kSequences; ++l)
      rows[l] = of.inputs ? of.weight + of.tokens[row(t, l)] * width : of.x + row(t, l) * width;
    rows_.read(rows, of.inputs ? 0 : of.batch * width);
  }
  // z += u_t[n]
  KRON_INLINE void add_to(Element<L>& z, int64_t n) const {
    if (of.inputs <= 0) {
      rows_.fetch_next(n);
      return add(z, rows_[n]);
    }
    if constexpr (Layout::kUnits > 1)
      if (u_) return add(z, u_[n]);
    for (int64_t i = 0; i < of.inputs; ++i)
      for (int c = 0; c < C; ++c)
        z.v[c] += Layout::of_units(of.weight + (i * C + c) * of.size, n) * features[i];
  }

 private:
  Block block_{};
  Rows<Layout> rows_;               // u_t, if it is read as rows
  const Element<kWide>* u_ = nullptr;  // u_t, if it is projected
};

// A thread's share of the input weight's gradient.
struct WeightSums {
  std::vector<double> features;
  const int64_t entries;  // of the table
  Arena arena;
  real* const table;  // one row per symbol; tokens may name only a few

  explicit WeightSums(const InputTensors& of)
      : features(std::max<int64_t>(of.inputs, 0) * C * of.size),
        entries(of.inputs < 0 ? of.token_rows * C * of.size : 0),
        table(entries ? arena.take<real>(entries) : nullptr) {}
  void add(const WeightSums& other) {
    add_to(other.features, features);
    for (int64_t i = 0; i < entries; ++i) table[i] += other.table[i];
  }
  void store(real* d_weight) const {
    std::copy(features.begin(), features.end(), d_weight);
    std::copy_n(table, entries, d_weight);
  }
};

// The gradients of x_t and of the input weight, from delta_t.
template <class Layout>
class InputGradient {
  static constexpr int L = Layout::kLanes;

 public:
  InputGradient(Input<Layout>& input, Arena& arena)
      : input_(input), of_(input.of), elements_(of_.size / Layout::kUnits) {
    if (of_.inputs <= 0) return;
    if (input.projection) {
      projected_ = std::make_unique<ProjectionGradient>(of_, input.projection->packed(), arena);
      return;
    }
    d_weight_ = arena.sums<Element<L>>(of_.inputs * elements_);
    d_features_ = arena.take<Lanes<L>>(of_.inputs);
  }
  bool wants_elements() const { return of_.inputs > 0 && !projected_; }
  void begin(int64_t t) {
    if (projected_) return;
    if (of_.inputs > 0) input_.read_features(t);
    for (int64_t i = 0; i < of_.inputs; ++i) d_features_[i] = Lanes<L>{};
  }
  // Call this for every n if `wants_elements`.
  KRON_INLINE void operator()(const Element<L>& delta, int64_t n) {
    for (int64_t i = 0; i < of_.inputs; ++i) {
      const real* weight = of_.weight + i * C * of_.size;
      Element<L>& sum = d_weight_[i * elements_ + n];
      for (int c = 0; c < C; ++c) {
        sum.v[c] += input_.features[i] * delta.v[c];
        if (of_.d_x) d_features_[i] += Layout::of_units(weight + c * of_.size, n) * delta.v[c];
      }
    }
  }
  void end(int64_t t, const Element<L>* delta, WeightSums& sums) {
    if constexpr (Layout::kUnits > 1)
      if (projected_) return (*projected_)(t, input_.row(0, 0), delta);
    const int64_t width = C * of_.size;
    real* rows[Layout::kSequences];
    for (int l = 0; l < Layout::kSequences; ++l) {
      if (of_.inputs < 0) rows[l] = sums.table + of_.tokens[input_.row(t, l)] * width;
      if (of_.inputs == 0 && of_.d_x) rows[l] = of_.d_x + input_.row(t, l) * width;
    }
    if (of_.inputs < 0) Layout::template store<Store::kAdd>(delta, of_.size, rows);
    if (of_.inputs == 0 && of_.d_x) Layout::template store<Store::kPlain>(delta, of_.size, rows);
    for (int64_t i = 0; of_.d_x && i < of_.inputs; ++i) {
      real a[Layout::kSequences];
      Layout::collect(d_features_[i], a);
      for (int l = 0; l < Layout::kSequences; ++l) of_.d_x[input_.row(t, l) * of_.inputs + i] = a[l];
    }
  }
  void finish(WeightSums& sums) const {
    if (projected_) return projected_->finish(sums.features.data());
    for (int64_t i = 0; i < of_.inputs; ++i)
      add_units<Layout>(d_weight_ + i * elements_, of_.size, C, sums.features.data() + i * C * of_.size);
  }

 private:
  Input<Layout>& input_;
  const InputTensors& of_;
  const int64_t elements_;
  Element<L>* d_weight_ = nullptr;
  Lanes<L>* d_features_ = nullptr;
  std::unique_ptr<ProjectionGradient> projected_;
};
