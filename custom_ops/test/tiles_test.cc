// Matrix tiles: what the emulation refuses, and the layers of ResNet-50 and MobileNetV2 on every target that has tiles.
#include <cstdio>
#include <stdexcept>

#include "kernels/simd/emulated_tiles.h"
#include "kernels/tile_block/tile_block.h"
#include "test/cases.h"

namespace keras_lowbit::test {
namespace {

template <class Run>
void CheckRefused(const char* words, const Run& run) {
  std::string said = "nothing";
  try {
    run();
  } catch (const std::logic_error& error) {
    said = error.what();
  }
  KLB_CHECK(said.find(words) != std::string::npos, "expected '" + std::string(words) + "', got '" + said + "'");
}

void CheckConfiguration() {
  alignas(64) int8_t memory[kTileBytes] = {};
  EmulatedTiles tiles;
  CheckRefused("used before configuration", [&] { tiles.Load<0>(memory, 64); });
  CheckRefused("used before configuration", [&] { tiles.Zero<7>(); });
  const struct {
    const char* words;
    void (*change)(TileConfig*);
  } cases[] = {
      {"a palette other than", [](TileConfig* c) { c->palette = 2; }},
      {"a start row beyond", [](TileConfig* c) { c->start_row = 16; }},
      {"reserved bytes", [](TileConfig* c) { c->reserved[13] = 1; }},
      {"more than 16 rows", [](TileConfig* c) { c->rows[3] = 17; }},
      {"more than 64 bytes", [](TileConfig* c) { c->row_bytes[7] = 68; }},
      {"beyond the last register", [](TileConfig* c) { c->rows[8] = 1, c->row_bytes[8] = 4; }},
      {"rows without bytes", [](TileConfig* c) { c->row_bytes[0] = 0; }},
  };
  for (const auto& c : cases) {
    TileConfig config = WholeTiles();
    c.change(&config);
    CheckRefused(c.words, [&] { EmulatedTiles refused(config); });
  }
  tiles.LoadConfig(WholeTiles());
  CheckRefused("read before it was written", [&] { tiles.Store<1>(memory, 64); });
  tiles.Zero<0>(), tiles.Zero<1>();
  CheckRefused("read before it was written", [&] { tiles.Dot<0, 1, 2>(); });
  tiles.Release();
  CheckRefused("used before configuration", [&] { tiles.Store<0>(memory, 64); });
  TileConfig small = WholeTiles();
  small.rows[2] = 15;
  tiles.LoadConfig(small);
  tiles.Zero<0>(), tiles.Zero<1>(), tiles.Zero<2>();
  CheckRefused("sizes do not fit", [&] { tiles.Dot<0, 1, 2>(); });
  CheckRefused("sizes do not fit", [&] { tiles.Dot<2, 0, 1>(); });
}

// A product of tiles of 3 x 8 by 8 x 5 against plain loops; what lies around them stays as it is.
void CheckProduct() {
  Random random(5);
  TileConfig config;
  config.palette = 1;
  config.rows[0] = 3, config.row_bytes[0] = 20;  // totals
  config.rows[1] = 3, config.row_bytes[1] = 8;   // x
  config.rows[2] = 2, config.row_bytes[2] = 20;  // w
  const auto x = Filled(random, 3 * 11, Fill::kRandom, -128, 127), w = Filled(random, 2 * 20, Fill::kRandom, -128, 127);
  int32_t totals[3][6], want[3][6];
  for (int m = 0; m < 3; ++m) {
    for (int n = 0; n < 6; ++n) {
      totals[m][n] = want[m][n] = INT32_MAX - 1000 * m - n;  // wraps
      for (int k = 0; n < 5 && k < 8; ++k)
        want[m][n] = static_cast<int32_t>(static_cast<uint32_t>(want[m][n]) +
                                          static_cast<uint32_t>(x[11 * m + k] * w[20 * (k / 4) + 4 * n + k % 4]));
    }
  }
  EmulatedTiles tiles(config);
  tiles.Load<0>(totals, sizeof totals[0]);
  tiles.Load<1>(x.data(), 11);
  tiles.Load<2>(w.data(), 20);
  tiles.Dot<0, 1, 2>();
  tiles.Store<0>(totals, sizeof totals[0]);
  KLB_CHECK(std::memcmp(totals, want, sizeof want) == 0, "a product of small tiles");
}

struct Shape {
  int64_t size, in, out, kernel, stride;
};

// The convolutions of Keras' ResNet50 at 224 x 224 and the 1x1 ones of MobileNetV2 (see bench/kernels_bench.cc).
std::vector<Shape> NetworkShapes() {
  std::vector<Shape> shapes = {
      {224, 3, 64, 7, 2}, {56, 64, 64, 1, 1}, {56, 64, 256, 1, 1}, {56, 64, 64, 3, 1}, {56, 256, 64, 1, 1}};
  for (int64_t out = 128, size = 56; out <= 512; out *= 2, size /= 2) {
    shapes.push_back({size, 2 * out, out, 1, 2});
    shapes.push_back({size, 2 * out, 4 * out, 1, 2});
    shapes.push_back({size / 2, out, out, 3, 1});
    shapes.push_back({size / 2, out, 4 * out, 1, 1});
    shapes.push_back({size / 2, 4 * out, out, 1, 1});
  }
  const int64_t pointwise[][3] = {{112, 32, 16}, {112, 16, 96}, {56, 96, 24},  {56, 24, 144}, {56, 144, 24},
                                  {28, 144, 32}, {28, 32, 192}, {28, 192, 32}, {14, 192, 64}, {14, 64, 384},
                                  {14, 384, 64}, {14, 384, 96}, {14, 96, 576}, {14, 576, 96}, {7, 576, 160},
                                  {7, 160, 960}, {7, 960, 160}, {7, 960, 320}, {7, 320, 1280},
                                  {5, 9216, 40}};  // deeper than a slice of x86_amx
  for (const auto& s : pointwise) shapes.push_back({s[0], s[1], s[2], 1, 1});
  return shapes;
}

Layer NetworkLayer(const Shape& shape, uint32_t seed) {
  Layer layer;
  ConvShape& s = layer.shape;
  s.in_height = s.in_width = shape.size;
  s.in_channels = shape.in;
  s.out_channels = shape.out;
  s.kernel_height = s.kernel_width = shape.kernel;
  s.stride_height = s.stride_width = shape.stride;
  SetSamePadding(&s);
  layer.kind = seed % 2 ? Kind::kInt8 : Kind::kTernary;
  layer.cluster_size = layer.kind == Kind::kTernary && seed % 4 == 0 ? 64 : 0;
  layer.has_scales = layer.cluster_size > 0;
  layer.fill_x = kFills[seed % 6];
  layer.zero_point = static_cast<int32_t>(seed * 37 % 256) - 128;
  layer.type = OutputType::kInt8;
  layer.has_residual = seed % 3 == 0;
  layer.large_factors = seed % 5 != 0;
  return layer;
}

// Targets that have tiles, or the best one of this CPU that has none.
std::vector<std::string> Kernels(bool with_tiles) {
  std::vector<std::string> names;
  for (const KernelInfo& info : CompiledKernels()) {
    const bool has_tiles = info.name.find("amx") != std::string::npos;
    if (info.supported && has_tiles == with_tiles && (with_tiles || names.empty())) names.push_back(info.name);
  }
  return names;
}

std::vector<int8_t> Outputs(const Layer& layer, const Data& data, const std::string& kernel) {
  std::vector<int8_t> y(layer.shape.output_size(), 0x5A);
  KLB_CHECK_OK(ForceKernel(kernel));
  KLB_CHECK_OK(RunLayer(layer, data, y.data(), nullptr));
  KLB_CHECK_OK(ForceKernel(""));
  return y;
}

// Whole layers; the random ones compare the target without tiles with the oracle.
void CheckNetworks() {
  const std::string best = Kernels(false).front();
  uint32_t seed = 0;
  for (const Shape& shape : NetworkShapes()) {
    Random random(++seed);
    const Layer layer = NetworkLayer(shape, seed);
    const auto data = Draw(layer, random);
    const std::vector<int8_t> want = Outputs(layer, *data, best);
    for (const std::string& kernel : Kernels(true)) {
      KLB_CHECK(Outputs(layer, *data, kernel) == want, kernel + " is not " + best + ": " + Describe(layer));
    }
  }
}

// Slices of any depth give the same: within a tap, over the ends of taps, and all in one.
void CheckSlices() {
  const Shape shapes[] = {{9, 130, 70, 3, 1}, {7, 200, 40, 3, 2}, {5, 700, 33, 1, 1}};
  for (int64_t most_steps : {1, 2, 5, 1000}) {
    for (uint32_t seed = 1; seed <= 6; ++seed) {
      Random random(seed);
      const Layer layer = NetworkLayer(shapes[seed % 3], seed);
      const auto data = Draw(layer, random);
      const TileLimits limits = {1, int64_t{1} << 20, most_steps, most_steps};
      for (const std::string& kernel : Kernels(true)) {
        SetTileLimits(&limits);
        const std::vector<int8_t> y = Outputs(layer, *data, kernel);
        SetTileLimits(nullptr);
        const std::string words = kernel + ", slices of " + std::to_string(most_steps) + " steps: ";
        KLB_CHECK(y == Outputs(layer, *data, Kernels(false).front()), words + Describe(layer));
      }
    }
  }
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  keras_lowbit::test::CheckConfiguration();
  keras_lowbit::test::CheckProduct();
  keras_lowbit::test::CheckNetworks();
  keras_lowbit::test::CheckSlices();
  return 0;
}
