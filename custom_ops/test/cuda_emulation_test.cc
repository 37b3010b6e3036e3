// The CUDA kernels' bodies, run on the CPU, against the oracle: random layers in full, and of every layer of the
// benchmarks' lists some tiles at their true size. KLB_SEED and KLB_CASES replay or lengthen a run.
#include <cstdio>
#include <cstring>

#include "bench/layer_list.h"
#include "test/emulated_layer.h"
#include "test/output_factors.h"
#include "test/random_layers.h"

namespace keras_lowbit::test {
namespace {

using cuda::ConvCall;
using cuda::ConvPlan;
using cuda::Emulation;

ConvCall CallOf(const Layer& layer, const Data& data, void* output) {
  ConvCall call;
  call.input = data.x.data();
  call.input_zero_point = layer.zero_point;
  call.epilogue = data.epilogue;
  call.output = output;
  return call;
}

Status Emulate(const Layer& layer, const Data& data, const ConvCall& call, const Emulation& how) {
  if (layer.kind == Kind::kDepthwise) return cuda::EmulateDepthwise(layer.shape, data.kernel.data(), call);
  return cuda::EmulateConv(layer.shape, data.weights, call, how);
}

// Into memory of its own, and into the residual's.
void CheckEmulated(const Layer& layer, Random& random, const Emulation& how) {
  const auto data = Draw(layer, random);
  const auto want = Wanted(layer, *data);
  std::vector<uint8_t> y(want.size() * (layer.type == OutputType::kInt8 ? 1 : 4), 0x5A);
  KLB_CHECK_OK(Emulate(layer, *data, CallOf(layer, *data, y.data()), how));
  CheckEqual(layer, y, want, "emulated CUDA");
  if (!layer.has_residual) return;
  y.assign(data->residual.begin(), data->residual.end());
  ConvCall call = CallOf(layer, *data, y.data());
  call.epilogue.residual.codes = reinterpret_cast<const int8_t*>(y.data());
  KLB_CHECK_OK(Emulate(layer, *data, call, how));
  CheckEqual(layer, y, want, "emulated CUDA in place");
}

// A device of 1 processor has large tiles and no slices, one of 132 small tiles and slices.
void CheckRandomLayers() {
  const int64_t seed = FromEnvironment("KLB_SEED", 11), cases = FromEnvironment("KLB_CASES", 300);
  for (int64_t i = 0; i < cases; ++i) {
    Random random(static_cast<uint32_t>(seed + i));
    const Layer layer = DrawLayer(random);
    if (layer.shape.output_size() > 5000) continue;
    Emulation how;
    how.processors = random() % 2 ? 1 : 132;
    how.instructions.product = random() % 4 == 0 ? cuda::EmulateDots : cuda::EmulateMma;
    how.instructions.ldmatrix = random() % 2 == 0;
    CheckEmulated(layer, random, how);
  }
}

Layer Deep(int64_t in_channels, int64_t size) {
  Layer layer;
  layer.shape.in_height = layer.shape.in_width = size;
  layer.shape.in_channels = in_channels;
  layer.shape.out_channels = 70;
  layer.shape.kernel_height = layer.shape.kernel_width = size == 1 ? 1 : 3;
  SetSamePadding(&layer.shape);
  layer.cluster_size = 64;
  layer.type = OutputType::kInt8;
  layer.zero_point = -7;
  layer.has_residual = true;
  return layer;
}

// Whole vectors, many stages, several slices: aligned channels with and without scales, and int8; rows and tiles.
void CheckDeepLayers() {
  Random random(3);
  for (int64_t size : {1, 5}) {
    for (int64_t channels : {64, 320, 1040}) {
      for (int scales = 0; scales < 3; ++scales) {
        Layer layer = Deep(channels, size);
        layer.has_scales = scales > 0;
        layer.scales_per_tap = scales == 2;
        for (int processors : {1, 132}) CheckEmulated(layer, random, {processors, {cuda::EmulateMma, scales == 1}});
      }
      Layer layer = Deep(channels, size);
      layer.kind = Kind::kInt8;
      layer.cluster_size = 0;
      for (int processors : {1, 132}) CheckEmulated(layer, random, {processors, {}});
    }
  }
}

// Sums of some outputs of a tile, straight from the definition.
void CheckTile(const Layer& layer, const Data& data, const ConvPlan& plan, cuda::GridPlace place, Random& random,
               const std::vector<int32_t>& y) {
  const ConvShape& s = layer.shape;
  const int64_t rows = plan.path == cuda::ConvPath::kTile128 ? 128 : plan.path == cuda::ConvPath::kTile32 ? 32 : 1;
  for (int i = 0; i < 24; ++i) {
    const int64_t pixel = place.x * rows + Between(random, 0, rows - 1);
    const int64_t channel = place.y * kBlockChannels + Between(random, 0, kBlockChannels - 1);
    if (pixel >= s.out_pixels() || channel >= s.out_channels) continue;
    const int64_t line = pixel / s.out_width();
    const int64_t sum = oracle::Sum(s, data.kernel.data(), data.x.data(), layer.zero_point, false,
                                    line / s.out_height(), line % s.out_height(), pixel % s.out_width(), channel);
    const double want = oracle::Output(data.epilogue, sum, channel, 0);
    KLB_CHECK(y[pixel * s.out_channels + channel] == want,
              "pixel " + std::to_string(pixel) + ", channel " + std::to_string(channel) + " of " + Describe(layer));
  }
}

// The first, the last and one more tile of a layer; all slices of each.
void CheckTiles(const Layer& layer, Random& random) {
  const auto data = Draw(layer, random);
  std::vector<int32_t> y(layer.shape.output_size());
  ConvPlan plan;
  KLB_CHECK_OK(cuda::PlanConv(layer.shape, data->weights, CallOf(layer, *data, y.data()), 132, &plan));
  std::vector<int32_t> partials(plan.workspace_bytes / 4);
  plan.args.partials = partials.data();
  const bool row = plan.path == cuda::ConvPath::kRow;
  const int64_t tiles = row ? 1 : plan.grid[0];
  for (int64_t tile : {int64_t{0}, Between(random, 0, tiles - 1), tiles - 1}) {
    const int column = static_cast<int>(Between(random, 0, plan.grid[1] - 1)), x = static_cast<int>(tile);
    for (int slice = 0; slice < plan.args.slices; ++slice) {
      cuda::EmulateBlock(plan, row ? cuda::GridPlace{slice, column, 0} : cuda::GridPlace{x, column, slice},
                         Emulation());
    }
    if (plan.args.slices > 1) cuda::EmulateEach(cuda::AddSlices{plan.args});
    CheckTile(layer, *data, plan, {x, column, 0}, random, y);
  }
}

void CheckList(const std::vector<bench::Case>& cases, const std::vector<int64_t>& cluster_sizes) {
  Random random(5);
  for (const bench::Case& c : cases) {
    for (int64_t cluster : cluster_sizes) {
      Layer layer;
      layer.shape = c.shape;
      layer.cluster_size = cluster;
      layer.has_scales = cluster > 0;
      layer.zero_point = 5;
      CheckTiles(layer, random);
    }
    Layer layer;
    layer.shape = c.shape;
    layer.kind = Kind::kInt8;
    CheckTiles(layer, random);
  }
}

// The stand-in for mma.sync, and the tables of the PTX ISA.
void CheckDots() {
  Random random(1);
  for (int round = 0; round < 50; ++round) {
    uint32_t a[cuda::kLanes][4], b[cuda::kLanes][2];
    int32_t first[cuda::kLanes][4], second[cuda::kLanes][4];
    cuda::Fragments one[cuda::kLanes], other[cuda::kLanes];
    for (int lane = 0; lane < cuda::kLanes; ++lane) {
      for (uint32_t& word : a[lane]) word = random();
      for (uint32_t& word : b[lane]) word = random();
      for (int i = 0; i < 4; ++i) first[lane][i] = second[lane][i] = static_cast<int32_t>(random());
      one[lane] = {a[lane], b[lane], first[lane]};
      other[lane] = {a[lane], b[lane], second[lane]};
    }
    cuda::EmulateMma(one);
    cuda::EmulateDots(other);
    KLB_CHECK(std::memcmp(first, second, sizeof(first)) == 0, "the products differ");
  }
}

// Packing byte for byte as on the CPU.
void CheckPacking() {
  for (int i = 0; i < 200; ++i) {
    Random random(static_cast<uint32_t>(i));
    Layer layer = DrawLayer(random);
    if (layer.kind == Kind::kDepthwise) continue;
    const bool ternary = layer.kind == Kind::kTernary;
    const auto data = Draw(layer, random);
    const ConvShape& s = layer.shape;
    std::vector<int8_t> kernel = Filled(random, static_cast<int64_t>(data->kernel.size()), Fill::kRandom,
                                        ternary ? -1 : -128, ternary ? 1 : 127);
    KLB_CHECK_OK(PackWeights(s, data->weights, kernel.data(), data->codes.data(), data->sums.data()));
    cuda::ConvArgs args;
    KLB_CHECK_OK(cuda::PlanPacking(s, data->weights, &args));
    std::vector<uint8_t> codes(data->codes.size());
    std::vector<int32_t> sums(data->sums.size());
    const cuda::PackByte pack = {args, kernel.data(), codes.data(), static_cast<int32_t>(s.groups), ternary};
    KLB_CHECK(pack.count() == static_cast<int64_t>(codes.size()), Describe(layer));
    cuda::EmulateEach(pack);
    cuda::EmulateEach(cuda::PackSum{pack, sums.data()});
    KLB_CHECK(codes == data->codes, "codes of " + Describe(layer));
    KLB_CHECK(sums == data->sums, "sums of " + Describe(layer));
  }
}

void CheckPool() {
  for (int i = 0; i < 100; ++i) {
    Random random(static_cast<uint32_t>(i));
    ConvShape s = DrawShape(random);
    s.out_channels = s.in_channels;
    s.dilation_height = s.dilation_width = 1;
    const std::vector<int8_t> x = Filled(random, s.input_size(), kFills[random() % 6], -128, 127);
    const int32_t padding = static_cast<int32_t>(Between(random, -128, 127));
    std::vector<int8_t> want(s.output_size()), got(s.output_size());
    KLB_CHECK_OK(MaxPool2D(s, x.data(), padding, -100, 90, want.data(), nullptr));
    KLB_CHECK_OK(cuda::EmulateMaxPool(s, x.data(), padding, -100, 90, got.data()));
    KLB_CHECK(got == want, "a maximum of case " + std::to_string(i));
  }
}

void CheckOutputFactors() {
  Random random(8);
  const FactorCase c = DrawFactors(random);
  const auto channels = static_cast<int64_t>(c.scale.size());
  std::vector<int32_t> got(3 * channels);
  cuda::EmulateEach(cuda::OutputFactorOfChannel{c.scale.data(), c.bias.data(), got.data(), channels, c.input_scale,
                                                c.output_scale});
  const std::vector<int32_t> want = WantedFactors(c);
  for (size_t i = 0; i < want.size(); ++i) KLB_CHECK(got[i] == want[i], "output factor " + std::to_string(i));
}

void CheckSharedValues() {
  // One multiplier and shift for all channels.
  Random random(9);
  Layer layer = Deep(64, 5);
  layer.has_residual = false;
  const auto data = Draw(layer, random);
  const size_t channels = data->multiplier.size();
  const int32_t multiplier = data->multiplier[0], shift = data->shift[0];
  data->multiplier.assign(channels, multiplier), data->shift.assign(channels, shift);
  const auto want = Wanted(layer, *data);
  std::vector<uint8_t> y(want.size());
  ConvCall call = CallOf(layer, *data, y.data());
  call.epilogue.requantize.multiplier = &multiplier, call.epilogue.requantize.shift = &shift;
  call.steps.multiplier = call.steps.shift = 0;
  KLB_CHECK_OK(cuda::EmulateConv(layer.shape, data->weights, call, Emulation()));
  CheckEqual(layer, y, want, "emulated CUDA with shared values");
}

void CheckErrors() {
  Random random(2);
  Layer layer = Deep(64, 5);
  const auto data = Draw(layer, random);
  std::vector<uint8_t> y(layer.shape.output_size());
  ConvCall call = CallOf(layer, *data, y.data());
  ConvPlan plan;
  call.input_zero_point = 200;
  KLB_CHECK_ERROR(cuda::PlanConv(layer.shape, data->weights, call, 132, &plan), "zero point is 200");
  call.input_zero_point = 0;
  PackedWeights odd = data->weights;
  odd.codes = data->codes.data() + 1;
  KLB_CHECK_ERROR(cuda::PlanConv(layer.shape, odd, call, 132, &plan), "16 bytes");
  ConvShape large = layer.shape;
  large.pad_top = int64_t{1} << 29;
  KLB_CHECK_ERROR(cuda::PlanConv(large, data->weights, call, 132, &plan), "a padded height is 536870918");
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  using namespace keras_lowbit;
  test::CheckErrors();
  test::CheckDots();
  test::CheckPacking();
  test::CheckPool();
  test::CheckOutputFactors();
  test::CheckSharedValues();
  test::CheckDeepLayers();
  test::CheckRandomLayers();
  test::CheckList(bench::ResNet50(), {0, 64, 4});
  test::CheckList(bench::MobileNetV2(), {0, 64, 4});
  test::CheckList(bench::LargeDense(), {64});  // a hundred million weights each
  return 0;
}
