// Work on somebody else's threads, without a barrier.
//
// TensorFlow's ParallelFor sleeps until every part is done and sleeps again at the next op; layers of a tenth of a
// millisecond spend as long on waking up as on work. Here the caller takes parts too, from one counter, until none is
// left, and then waits, awake, only for parts that a helper is in the middle of: a helper that comes late finds nothing
// to do. An exception of a part, on any thread, leaves the call on the caller's, when nobody works any more.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include "core/parallel.h"

namespace keras_lowbit {

// One call. Helpers share it and may outlive the call, `work` itself only while parts are unfinished.
class SharedWork {
 public:
  SharedWork(int64_t count, int64_t parts, const Work* work) : count_(count), parts_(parts), work_(work) {}

  // Takes parts until none is left; after an exception they are only counted.
  void Help() noexcept {
    for (int64_t part = next_++; part < parts_; part = next_++) {
      if (!failed_.load(std::memory_order_relaxed)) Run(part);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  // Waits for all parts. Throws what the first of them threw, which is the caller's alone from then on: a helper that
  // comes late never frees it.
  void Finish() {
    for (int64_t turn = 0; done_.load(std::memory_order_acquire) < parts_; ++turn) {
      if (turn > kPolitely) std::this_thread::yield();
    }
    if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void Run(int64_t part) noexcept {
    try {
      (*work_)(count_* part / parts_, count_ * (part + 1) / parts_);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  static constexpr int64_t kPolitely = 2000;  // a few microseconds
  const int64_t count_, parts_;
  const Work* const work_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written before the part that failed is counted, read when all are
};

// Parts of about ten microseconds, at most four for each thread. Costs are nanoseconds of one index. Pool:
// NumThreads(), and Schedule(function) that runs the function later on one of them.
template <class Pool>
void RunOn(Pool* pool, int64_t count, int64_t cost, const Work& work) {
  constexpr int64_t kPart = 10000, kPartsOfThread = 4;
  const int64_t threads = pool->NumThreads();
  const int64_t worthwhile = count > (int64_t{1} << 40) / std::max<int64_t>(cost, 1) ? count : count * cost / kPart;
  const int64_t parts = std::min({count, worthwhile, kPartsOfThread * threads});
  if (threads <= 1 || parts <= 1) return work(0, count);
  const auto shared = std::make_shared<SharedWork>(count, parts, &work);
  try {
    for (int64_t helper = 1; helper < std::min(threads, parts); ++helper) {
      pool->Schedule([shared] { shared->Help(); });
    }
  } catch (...) {
    // No memory for another helper: those that are there and the caller do all the parts.
  }
  shared->Help();
  shared->Finish();
}

}  // namespace keras_lowbit
