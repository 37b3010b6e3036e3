// layers/shared_work.h on plain threads: every index once, helpers that come late, layers on several threads. Made for
// a thread sanitizer too.
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "layers/shared_work.h"
#include "test/cases.h"

namespace keras_lowbit::test {
namespace {

// As little of a pool as RunOn needs. Ends when all that was scheduled has run.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Serve(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int NumThreads() const { return static_cast<int>(threads_.size()); }
  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

 private:
  void Serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return ends_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  bool ends_ = false;
};

// Counts in plain integers: a part that ran twice, or after RunOn's return, is a wrong count or a race.
void CheckEveryIndexOnce() {
  Pool pool(3);
  for (const int64_t count : {1, 2, 7, 100, 1000}) {
    for (const int64_t cost : {int64_t{1}, int64_t{5000}, int64_t{1} << 50}) {
      for (int repeat = 0; repeat < 200; ++repeat) {
        std::vector<int> seen(count);
        RunOn(&pool, count, cost, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++seen[i];
        });
        for (const int times : seen)
          KLB_CHECK(times == 1, std::to_string(count) + " indices of cost " + std::to_string(cost));
      }
    }
  }
}

// Several callers share the pool, as ops of one graph do; helpers of one call may start after its end.
void CheckManyCallers() {
  Pool pool(2);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&pool] {
      for (int repeat = 0; repeat < 300; ++repeat) {
        std::vector<int64_t> sums(16);
        RunOn(&pool, 16, 20000, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) sums[i] += i;
        });
        for (int64_t i = 0; i < 16; ++i) KLB_CHECK(sums[i] == i, std::to_string(i));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// Layers of several chunks and blocks, of three channels (a copied image) and of many.
void CheckLayers() {
  Pool pool(3);
  const ParallelFor parallel = [&](int64_t count, int64_t, const Work& work) { RunOn(&pool, count, 1 << 20, work); };
  for (const Kind kind : {Kind::kTernary, Kind::kInt8, Kind::kDepthwise}) {
    for (const int64_t channels : {3, 20}) {
      Random random(static_cast<uint32_t>(channels));
      Layer layer;
      layer.kind = kind;
      layer.shape.in_height = layer.shape.in_width = 20;
      layer.shape.in_channels = channels;
      layer.shape.out_channels = kind == Kind::kDepthwise ? channels : 70;
      layer.shape.kernel_height = layer.shape.kernel_width = 3;
      SetSamePadding(&layer.shape);
      layer.type = OutputType::kInt8;
      layer.has_residual = layer.large_factors = true;
      CheckLayer(layer, random, parallel);
    }
  }
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  keras_lowbit::test::CheckEveryIndexOnce();
  keras_lowbit::test::CheckManyCallers();
  keras_lowbit::test::CheckLayers();
  return 0;
}
