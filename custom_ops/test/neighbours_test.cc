// Other code of a thread that has tiles too, with a configuration of its own: it finds that again after a layer on x86_amx,
// or no configuration where there was none; and threads do not meet each other's.
#include <cstdio>
#include <thread>

#include "core/cpu_features.h"
#include "kernels/simd/tile_config.h"
#include "test/cases.h"

namespace keras_lowbit::test {
namespace {

TileConfig Configured() {
  TileConfig config;
  asm volatile("sttilecfg %0" : "=m"(config));
  return config;
}

void CheckEqual(const TileConfig& got, const TileConfig& want, const char* when) {
  KLB_CHECK(std::memcmp(&got, &want, sizeof got) == 0, std::string("another configuration ") + when);
}

Layer DrawnLayer(uint32_t seed) {
  Layer layer;
  layer.kind = seed % 2 ? Kind::kInt8 : Kind::kTernary;
  layer.shape.in_height = layer.shape.in_width = 9;
  layer.shape.in_channels = 60;
  layer.shape.out_channels = 70;
  layer.shape.kernel_height = layer.shape.kernel_width = 3;
  SetSamePadding(&layer.shape);
  layer.type = OutputType::kInt8;
  layer.large_factors = true;
  return layer;
}

// A neighbour with tiles of `rows` rows, and our layer, in turns.
void TakeTurns(uint32_t seed, int rows) {
  Random random(seed);
  const Layer layer = DrawnLayer(seed);
  const auto data = Draw(layer, random);
  const auto want = Wanted(layer, *data);
  TileConfig neighbour;
  neighbour.palette = 1;
  for (int t = 0; t < 3; ++t) neighbour.rows[t] = static_cast<uint8_t>(rows), neighbour.row_bytes[t] = 32;
  LayerCache cache;
  for (int turn = 0; turn < 6; ++turn) {
    const bool configured = turn % 3 != 0;
    const TileConfig before = configured ? neighbour : TileConfig();
    if (configured) asm volatile("ldtilecfg %0" : : "m"(neighbour));
    std::vector<uint8_t> y(want.size());
    KLB_CHECK_OK(RunLayer(layer, *data, y.data(), nullptr, &cache));
    CheckEqual(layer, y, want, "in turns with a neighbour");
    CheckEqual(Configured(), before, configured ? "behind a layer" : "where there was none");
    asm volatile("tilerelease");
  }
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  using namespace keras_lowbit;
  if (!Cpu().amx_int8) {
    std::printf("SKIPPED: no AMX here; neighbours_trapped_test runs the same with trapped tiles\n");
    return 0;
  }
  KLB_CHECK_OK(ForceKernel("x86_amx"));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([i] { test::TakeTurns(static_cast<uint32_t>(i), 3 + i); });
  for (std::thread& thread : threads) thread.join();
  return 0;
}
