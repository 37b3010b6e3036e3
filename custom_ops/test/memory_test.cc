// Memory that runs out: every allocation of every layer is made to fail once, alone or with all that follow it. The call
// throws std::bad_alloc to its caller and nothing else happens; the next call is right.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <thread>

#include "layers/shared_work.h"
#include "test/cases.h"
#include "test/thread_pool.h"

namespace {

// Of all threads: how many allocations still succeed, while one is awaited that fails; then whether one did.
std::atomic<int64_t> left{-1};
std::atomic<bool> fails_on{false}, failed{false};

void* Allocate(size_t bytes, size_t alignment) {
  const int64_t before = left.load() < 0 ? -1 : left.fetch_sub(1);
  const bool fails = before == 0 || (failed && fails_on);
  if (fails) failed = true;
  return fails ? nullptr : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

void* AllocateOrThrow(size_t bytes, size_t alignment) {
  if (void* memory = Allocate(bytes, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) { return AllocateOrThrow(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return AllocateOrThrow(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return Allocate(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace keras_lowbit::test {
namespace {

enum class Outcome { kOk, kNoMemory };

// Runs `call` with its allocation number `n` failing; on a thread of its own, whose scratch is as empty as the pool's.
Outcome RunShortOfMemory(int64_t n, bool all_after, const std::function<Status()>& call) {
  Outcome outcome = Outcome::kOk;
  std::thread caller([&] {
    fails_on = all_after, failed = false, left = n;
    try {
      const Status status = call();
      left = -1, failed = false;
      KLB_CHECK_OK(status);
    } catch (const std::bad_alloc&) {
      left = -1, failed = false;
      outcome = Outcome::kNoMemory;
    }
  });
  caller.join();
  return outcome;
}

// Each allocation of `call` fails in turn, until a run has fewer. check: that a run in plenty is right.
void CheckEachAllocation(const std::string& name, int64_t least, const std::function<Status()>& call,
                         const std::function<void()>& check) {
  for (const bool all_after : {false, true}) {
    int64_t refused = 0, n = 0, fine = 0;
    for (; fine < 20; ++n) {  // some runs end well although one failed: a helper less, a cache that keeps nothing
      const bool ok = RunShortOfMemory(n, all_after, call) == Outcome::kOk;
      fine = ok ? fine + 1 : 0;
      refused += !ok;
      if (!ok) check();
    }
    KLB_CHECK(refused >= least, name + " was refused " + std::to_string(refused) + " times");
  }
}

Layer DrawnLayer(Kind kind, int64_t channels, bool has_residual) {
  Layer layer;
  layer.kind = kind;
  layer.shape.in_height = layer.shape.in_width = 12;
  layer.shape.in_channels = channels;
  layer.shape.out_channels = kind == Kind::kDepthwise ? channels : 70;
  layer.shape.kernel_height = layer.shape.kernel_width = 3;
  SetSamePadding(&layer.shape);
  layer.type = OutputType::kInt8;
  layer.large_factors = true;
  layer.has_residual = has_residual;
  return layer;
}

void CheckLayers() {
  for (const Kind kind : {Kind::kTernary, Kind::kInt8, Kind::kDepthwise}) {
    for (const int64_t channels : {3, 20}) {
      for (const int threads : {0, 3}) {
        const Layer layer = DrawnLayer(kind, channels, channels == 20);
        Random random(static_cast<uint32_t>(channels));
        const auto data = Draw(layer, random);
        std::vector<uint8_t> want(layer.shape.output_size()), y(want.size());
        KLB_CHECK_OK(RunLayer(layer, *data, want.data(), nullptr));
        std::unique_ptr<Pool> pool;
        std::unique_ptr<LayerCache> cache;
        const ParallelFor parallel = [&](int64_t count, int64_t, const Work& work) {
          RunOn(pool.get(), count, 1 << 20, work);
        };
        const auto run = [&] {  // the second time float32 parameters are looked for
          const ParallelFor used = threads == 0 ? ParallelFor() : parallel;
          KLB_RETURN_IF_ERROR(RunLayer(layer, *data, y.data(), used, cache.get()));
          return RunLayer(layer, *data, y.data(), used, cache.get());
        };
        const auto renew = [&] {
          if (threads > 0) pool = std::make_unique<Pool>(threads);
          cache = std::make_unique<LayerCache>();
        };
        renew();
        CheckEachAllocation(Describe(layer), 5, run, [&] {
          std::fill(y.begin(), y.end(), uint8_t{0x5A});
          KLB_CHECK_OK(run());
          KLB_CHECK(y == want, "after a lack of memory: " + Describe(layer));
          renew();
        });
      }
    }
  }
}

void CheckMaxPool() {
  ConvShape shape;
  shape.in_height = shape.in_width = 9, shape.in_channels = shape.out_channels = 5;
  shape.kernel_height = shape.kernel_width = 3;
  const std::vector<int8_t> x(shape.input_size(), 7), want(shape.output_size(), 7);
  std::vector<int8_t> y(want.size());
  const auto run = [&] { return MaxPool2D(shape, x.data(), -128, -128, 127, y.data(), nullptr); };
  CheckEachAllocation("max pool", 1, run, [&] {
    KLB_CHECK_OK(run());
    KLB_CHECK(y == want, "max pool after a lack of memory");
  });
}

// What an op does when it is made.
void CheckResidualSearch() {
  const Layer layer = DrawnLayer(Kind::kInt8, 4, true);
  Random random(1);
  const auto data = Draw(layer, random);
  const auto run = [&] {
    FindFp32Residual(data->epilogue.requantize, data->epilogue.residual);
    return Status();
  };
  CheckEachAllocation("search", 1, run, [&] { KLB_CHECK_OK(run()); });
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  keras_lowbit::test::CheckResidualSearch();
  keras_lowbit::test::CheckMaxPool();
  for (const char* kernel : {"", "reference_amx"}) {  // the second has matrix tiles
    KLB_CHECK_OK(keras_lowbit::ForceKernel(kernel));
    keras_lowbit::test::CheckLayers();
  }
  return 0;
}
