// Letting the interpreter that called see to signals, so that a Ctrl-C does not wait for a long call's end.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

// Functions of the interpreter, as kernel.py hands them over.
struct Interpreter {
  void* (*release)();      // lets its other threads run
  void (*acquire)(void*);  // and ends that
  int (*raised)();         // runs the handlers of signals; not 0 if one raised. Null where none can come
};

// A call in progress, whose other threads run meanwhile. Without an interpreter nothing can stop it.
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
  // Whether all threads are to end as soon as they can: what they were to compute is not wanted any more.
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  // For the thread that called.
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

// What a thread asks before every step, which may be a short one: the clock is looked at now and then.
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
