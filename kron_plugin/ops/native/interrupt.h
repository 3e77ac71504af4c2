// Lets the calling interpreter handle signals, so that Ctrl-C does not wait for the end of a long call.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

// Functions of the interpreter, as kernel.py hands them over.
struct Interpreter {
  void* (*release)();      // lets its other threads run
  void (*acquire)(void*);  // stops them again
  int (*raised)();         // runs signal handlers; not 0 if one raised. Null if no signal can come
};

// A call in progress; the interpreter's other threads run meanwhile. Without an interpreter nothing can stop it.
class Running {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kInterval{100};

  explicit Running(const Interpreter* interpreter)
      : interpreter_(interpreter), state_(interpreter ? interpreter->release() : nullptr) {}
  Running(const Running&) = delete;
  ~Running() {
    if (interpreter_) interpreter_->acquire(state_);
  }
  // Whether all threads should end as soon as they can: their results are no longer wanted.
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  // Only the calling thread may call this.
  void look() {
    if (!interpreter_ || !interpreter_->raised || stopped() || Clock::now() < next_) return;
    interpreter_->acquire(state_);
    if (interpreter_->raised()) stopped_ = true;
    state_ = interpreter_->release();
    next_ = Clock::now() + kInterval;
  }

 private:
  const Interpreter* const interpreter_;
  void* state_;
  std::atomic<bool> stopped_{false};
  Clock::time_point next_ = Clock::now() + kInterval;
};

// Every thread asks it before each step. Steps may be short, so the clock is read only now and then.
class Pace {
 public:
  Pace(Running& running, bool is_caller) : running_(running), is_caller_(is_caller) {}
  bool stop(int64_t cells) {
    cells_ += cells;
    if (is_caller_ && cells_ >= kCells) {
      cells_ = 0;
      running_.look();
    }
    return running_.stopped();
  }

 private:
  static constexpr int64_t kCells = 512;
  Running& running_;
  const bool is_caller_;
  int64_t cells_ = 0;
};
