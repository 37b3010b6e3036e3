// Work on the caller's threads.
#pragma once

#include <cstdint>
#include <functional>

namespace keras_lowbit {

// Runs work(begin, end) over all of [0, count), in parts, on the caller's threads, and returns when all are done; throws
// what a part threw, also then only when nobody works any more.
// `cost` estimates the nanoseconds of one index. Empty: the calling thread does it all.
using Work = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t count, int64_t cost, const Work& work)>;

inline void RunAll(const ParallelFor& parallel, int64_t count, int64_t cost, const Work& work) {
  if (parallel == nullptr || count <= 1) return work(0, count);
  parallel(count, cost, work);
}

}  // namespace keras_lowbit
