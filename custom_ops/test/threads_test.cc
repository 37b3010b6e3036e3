// layers/shared_work.h on plain threads: every index once, helpers that come late, layers on several threads. Made for
// a thread sanitizer too.
#include <stdexcept>
#include <thread>

#include "layers/shared_work.h"
#include "test/cases.h"
#include "test/thread_pool.h"

namespace keras_lowbit::test {
namespace {

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

// A part that throws, on whichever thread: the call throws it when nobody works any more, and the pool works on.
void CheckExceptions() {
  Pool pool(3);
  for (int64_t bad = 0; bad < 16; ++bad) {
    std::vector<int> seen(16);
    bool thrown = false;
    try {
      RunOn(&pool, 16, 20000, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (i == bad || bad == 15) throw std::runtime_error(std::to_string(i));
          ++seen[i];
        }
      });
    } catch (const std::runtime_error& error) {
      thrown = bad == 15 || error.what() == std::to_string(bad);
    }
    KLB_CHECK(thrown, std::to_string(bad));
    for (const int times : seen) KLB_CHECK(times <= 1, std::to_string(bad));
  }
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
  keras_lowbit::test::CheckExceptions();
  keras_lowbit::test::CheckLayers();
  return 0;
}
