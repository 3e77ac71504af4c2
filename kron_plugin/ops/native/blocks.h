// A batch as blocks of lanes, dealt out to threads.
//
// Results do not depend on timing: the order in which blocks go to threads, and in which the threads'
// sums are added, is fixed.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <type_traits>
#include <vector>

#include "interrupt.h"
#include "lanes.h"
#include "layout.h"

// Sequences that are computed together: as many as fill the lanes, or one whose units fill them.
struct Block {
  int64_t begin;
  int sequences;
  bool by_units;
};

// Blocks of sequences are as wide as the widest vector, or narrower if some threads would get none. The rest
// of the batch is in still narrower blocks, so that no lane is empty.
inline std::vector<Block> partition(int64_t batch, int64_t threads, bool by_units) {
  constexpr int kNarrowest = 16 / sizeof(real);  // narrower vectors take as long
  int width = by_units ? 1 : kMaxLanes;
  while (width > kNarrowest && (batch + width - 1) / width < threads) width /= 2;
  std::vector<Block> blocks;
  for (int64_t begin = 0; begin < batch; begin += width) {
    while (width > batch - begin) width = width > kNarrowest ? width / 2 : 1;
    blocks.push_back({begin, width, by_units});
  }
  return blocks;
}

template <class Work>
void with_layout(const Block& block, Work work) {
  if (block.by_units) return work(OfUnits());
  switch (block.sequences) {
    case 1: return work(OfSequences<1>());
    case kMaxLanes / 4: return work(OfSequences<kMaxLanes / 4>());
    case kMaxLanes / 2: return work(OfSequences<kMaxLanes / 2>());
    case kMaxLanes: return work(OfSequences<kMaxLanes>());
  }
}

// How a batch is shared: block i goes to thread i modulo `threads`.
struct Shares {
  std::vector<Block> blocks;
  int64_t threads;
  Shares(int64_t batch, int64_t most, bool by_units)
      : blocks(partition(batch, most, by_units)), threads(std::min<int64_t>(most, blocks.size())) {}
};

// The Workers of one thread, one for each layout of its blocks.
template <template <class> class Worker>
struct Workers {
  std::tuple<std::unique_ptr<Worker<OfSequences<1>>>, std::unique_ptr<Worker<OfSequences<kMaxLanes / 4>>>,
             std::unique_ptr<Worker<OfSequences<kMaxLanes / 2>>>,
             std::unique_ptr<Worker<OfSequences<kMaxLanes>>>, std::unique_ptr<Worker<OfUnits>>>
      by_layout;
  template <class Layout>
  std::unique_ptr<Worker<Layout>>& of(Layout) {
    return std::get<std::unique_ptr<Worker<Layout>>>(by_layout);
  }
};

// Runs every block by a Worker<Layout>: worker.run(block, pace). make(layout, thread) makes all Workers, with all
// their memory, before threads start: a thread without memory cannot report it, because to throw takes memory.
// If the system gives no more threads, the caller does their share.
template <template <class> class Worker, class Make>
void for_blocks(const Shares& shares, Running& running, Make make) {
  const std::vector<Block>& blocks = shares.blocks;
  std::vector<Workers<Worker>> workers(shares.threads);
  for (size_t i = 0; i < blocks.size(); ++i)
    with_layout(blocks[i], [&](auto layout) {
      const int64_t thread = i % shares.threads;
      auto& worker = workers[thread].of(layout);
      if (!worker) worker = make(layout, thread);
    });
  const auto share = [&](int64_t thread, bool is_caller) {
    Pace pace(running, is_caller);
    for (size_t i = thread; i < blocks.size() && !running.stopped(); i += shares.threads)
      with_layout(blocks[i], [&](auto layout) { workers[thread].of(layout)->run(blocks[i], pace); });
  };
  std::mutex mutex;
  std::condition_variable ended;
  size_t done = 0;
  std::vector<std::thread> others;
  others.reserve(shares.threads);
  for (int64_t thread = 1; thread < shares.threads; ++thread) {
    try {
      others.emplace_back([&, thread] {
        share(thread, false);
        const std::lock_guard<std::mutex> lock(mutex);
        ++done;
        ended.notify_one();
      });
    } catch (const std::exception&) {
      share(thread, true);
    }
  }
  if (shares.threads > 0) share(0, true);
  std::unique_lock<std::mutex> lock(mutex);
  while (!ended.wait_for(lock, Running::kInterval, [&] { return done == others.size(); })) {
    lock.unlock();
    running.look();
    lock.lock();
  }
  lock.unlock();
  for (std::thread& other : others) other.join();
}

// The result of a pass: 0, or 1 when memory ran out. No exception may leave, because the caller is in another
// language.
template <class Pass>
int status(const Interpreter* interpreter, Pass pass) {
  Running running(interpreter);
  try {
    pass(running);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

// ---- between tensors of shape (B, C units) and the cells of a block

template <class Layout>
void load_batch(const real* from, const Block& block, int64_t units, Element<Layout::kLanes>* cells) {
  const real* rows[Layout::kSequences];
  for (int l = 0; l < Layout::kSequences; ++l) rows[l] = from + (block.begin + l) * C * units;
  Layout::load(rows, units, cells);
}
template <class Layout>
void store_batch(const Element<Layout::kLanes>* cells, const Block& block, int64_t units, real* to) {
  real* rows[Layout::kSequences];
  for (int l = 0; l < Layout::kSequences; ++l) rows[l] = to + (block.begin + l) * C * units;
  Layout::template store<Store::kPlain>(cells, units, rows);
}

// How many steps of each sequence of the block count; all if `lengths` is null.
template <class Layout>
class Lengths {
  static constexpr int kSequences = Layout::kSequences;

 public:
  Lengths(const int64_t* lengths, int64_t steps) : given(lengths), lengths_(lengths), steps_(steps) {}
  const bool given;
  void begin(const Block& block) {
    for (int l = 0; l < kSequences; ++l)
      length_[l] = given ? std::clamp<int64_t>(lengths_[block.begin + l], 0, steps_) : steps_;
  }
  // Whether step t still counts, lane by lane.
  auto live(int64_t t) const {
    real left[kSequences];
    for (int l = 0; l < kSequences; ++l) left[l] = real(length_[l] - t);
    return Layout::spread(left) > Lanes<Layout::kLanes>{};
  }

 private:
  const int64_t* const lengths_;
  const int64_t steps_;
  int64_t length_[kSequences];
};

// ---- sums over the batch

template <class T>
void add_to(const std::vector<T>& from, std::vector<T>& to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}
