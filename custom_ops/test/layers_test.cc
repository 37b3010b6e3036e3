// Shapes that straddle vector widths and tile heights, threads, and inputs that must be refused.
#include <thread>

#include "layers/constants.h"
#include "test/cases.h"

namespace keras_lowbit::test {
namespace {

// Channels around 4, 16, 32 and 64, pixels around the tiles of 2 to 6, by all fills.
void CheckWidths() {
  const int64_t channels[] = {1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129};
  uint32_t seed = 100;
  for (Kind kind : {Kind::kTernary, Kind::kInt8, Kind::kDepthwise}) {
    for (int64_t in : channels) {
      for (int64_t out :
           kind == Kind::kDepthwise ? std::vector<int64_t>{in} : std::vector<int64_t>{1, 16, 33, 64, 65}) {
        for (int64_t pixels : {1, 5, 6, 7, 13, 65}) {
          Random random(++seed);
          Layer layer;
          layer.kind = kind;
          layer.shape.in_channels = in;
          layer.shape.out_channels = out;
          layer.shape.in_width = pixels;
          layer.fill_x = kFills[seed % 6];
          layer.fill_w = kFills[seed / 6 % 6];
          layer.zero_point = seed % 2 ? -128 : 127;
          layer.type = OutputType::kInt8;
          layer.has_residual = seed % 3 == 0;
          layer.large_factors = seed % 2 == 0;
          CheckLayer(layer, random);
        }
      }
    }
  }
}

// Long sums: 16-bit partial sums must be widened in time, and 32-bit ones wrap alike on every ISA target.
void CheckDepths() {
  for (int64_t depth : {252, 256, 260, 508, 512, 1024, 4608}) {
    for (Fill x : {Fill::kAllMin, Fill::kAllMax, Fill::kAlternating}) {
      for (Fill w : {Fill::kAllMin, Fill::kAllMax}) {
        Random random(static_cast<uint32_t>(depth));
        Layer layer;
        layer.shape.in_channels = depth;
        layer.shape.out_channels = 20;
        layer.fill_x = x;
        layer.fill_w = w;
        for (int64_t pixels : {1, 70}) {
          layer.shape.in_width = pixels;
          layer.kind = Kind::kTernary;
          CheckLayer(layer, random);
          layer.kind = Kind::kInt8;
          CheckLayer(layer, random);
        }
      }
    }
  }
}

// Four threads with an uneven share each.
void OnThreads(int64_t count, int64_t, const Work& work) {
  std::vector<std::thread> threads;
  const int64_t cuts[] = {0, count / 5, count / 3, count / 2, count};
  for (int i = 0; i < 4; ++i) {
    if (cuts[i] < cuts[i + 1]) threads.emplace_back([&, i] { work(cuts[i], cuts[i + 1]); });
  }
  for (std::thread& thread : threads) thread.join();
}

void CheckThreads() {
  for (Kind kind : {Kind::kTernary, Kind::kInt8, Kind::kDepthwise}) {
    Random random(11);
    Layer layer;
    layer.kind = kind;
    layer.shape.in_height = layer.shape.in_width = 40;
    layer.shape.in_channels = 20;
    layer.shape.out_channels = kind == Kind::kDepthwise ? 20 : 130;
    layer.shape.kernel_height = layer.shape.kernel_width = 3;
    SetSamePadding(&layer.shape);
    layer.has_scales = kind == Kind::kTernary;
    layer.cluster_size = kind == Kind::kTernary ? 8 : 0;
    layer.type = OutputType::kInt8;
    CheckLayer(layer, random, OnThreads);
  }
}

// Scales as a network has them: nearly all additions are exact in float32; refused numbers and ties are not.
void CheckFp32Residual() {
  Random random(2);
  int found = 0;
  for (int i = 0; i < 40; ++i) {
    Layer layer;
    layer.type = OutputType::kInt8;
    layer.has_residual = true;
    const auto data = Draw(layer, random);
    ResidualAdd add = data->epilogue.residual;
    add.output_shift = -18 - i % 3;
    found += FindFp32Residual(data->epilogue.requantize, add).is_exact;
    add.zero_point = 200;
    KLB_CHECK(!FindFp32Residual(data->epilogue.requantize, add).is_exact, "a zero point that is no code");
  }
  KLB_CHECK(found >= 35, std::to_string(found) + " of 40 additions are exact in float32");
  ResidualAdd ties;  // (y + code) / 2, halves away from zero
  ties.first_multiplier = ties.second_multiplier = ties.output_multiplier = 1 << 30;
  ties.output_shift = -19;
  KLB_CHECK(!FindFp32Residual({}, ties).is_exact, "ties in float32");
}

// A cache that sees another layer, or the same arrays with other contents, forms its constants again.
void CheckCache() {
  Random random(3);
  LayerCache cache;
  for (int i = 0; i < 6; ++i) {
    Layer layer;
    layer.kind = i < 4 ? Kind::kTernary : Kind::kDepthwise;
    layer.shape.in_width = 9;
    layer.shape.in_channels = 20;
    layer.shape.out_channels = 20;
    layer.type = OutputType::kInt8;
    layer.large_factors = true;
    const auto data = Draw(layer, random);
    for (int change = 0; change < 4; ++change) {
      if (change == 1) data->bias[7] += 100;
      if (change == 2) data->shift[19] = -1;
      if (change == 3) data->epilogue.requantize.zero_point -= 1, data->epilogue.requantize.clamp_min = -128;
      std::vector<uint8_t> fresh(180), kept(180);
      KLB_CHECK_OK(RunLayer(layer, *data, fresh.data(), nullptr));
      for (int call = 0; call < 3; ++call) KLB_CHECK_OK(RunLayer(layer, *data, kept.data(), nullptr, &cache));
      KLB_CHECK(fresh == kept, "layer " + std::to_string(i) + ", change " + std::to_string(change));
    }
  }
}

Status RunChanged(const Layer& layer, const Data& data, void (*change)(Layer*, Data*)) {
  Layer changed = layer;
  Data with = data;
  with.epilogue.residual.codes = data.residual.data();
  change(&changed, &with);
  std::vector<uint8_t> y(4 * layer.shape.output_size());
  return RunLayer(changed, with, y.data(), nullptr);
}

void CheckErrors() {
  Random random(1);
  Layer layer;
  layer.shape.in_channels = 8;
  layer.shape.out_channels = 8;
  layer.type = OutputType::kInt8;
  layer.has_residual = true;
  const auto data = Draw(layer, random);
  const struct {
    const char* words;
    void (*change)(Layer*, Data*);
  } cases[] = {
      {"stride_width is 0; expected 1 to", [](Layer* l, Data*) { l->shape.stride_width = 0; }},
      {"pad_left is -1; expected 0 to", [](Layer* l, Data*) { l->shape.pad_left = -1; }},
      {"batch is 1099511627776; expected 0 to", [](Layer* l, Data*) { l->shape.batch = int64_t{1} << 40; }},
      {"elements is too large", [](Layer* l, Data*) { l->shape.batch = l->shape.in_height = 1 << 25; }},
      {"elements is too large", [](Layer* l, Data*) { l->shape.kernel_width = l->shape.kernel_height = 1 << 20; }},
      {"8 input and 8 output channels; expected multiples of groups = 3", [](Layer* l, Data*) { l->shape.groups = 3; }},
      {"expected 192: pack the kernel again", [](Layer* l, Data*) { l->shape.in_channels = 12; }},
      {"the input's zero point is 128", [](Layer* l, Data*) { l->zero_point = 128; }},
      {"came without factors", [](Layer*, Data* d) { d->epilogue.requantize.shift = nullptr; }},
      {"a shift is 32; expected -31 to 31",
       [](Layer*, Data* d) { d->shift[7] = 32, d->epilogue.requantize.shift = d->shift.data(); }},
      {"the activation's clamp runs from 1 down to 0",
       [](Layer*, Data* d) { d->epilogue.requantize.clamp_min = 1, d->epilogue.requantize.clamp_max = 0; }},
      {"the residual's zero point is -129", [](Layer*, Data* d) { d->epilogue.residual.zero_point = -129; }},
      {"a residual came with an int32 or float output", [](Layer*, Data* d) { d->epilogue.type = OutputType::kInt32; }},
      {"came without float_scale",
       [](Layer*, Data* d) { d->epilogue.type = OutputType::kFloat, d->epilogue.float_scale = nullptr; }},
  };
  for (const std::string& isa : TestedKernels()) {
    KLB_CHECK_OK(ForceKernel(isa));
    for (const auto& c : cases) KLB_CHECK_ERROR(RunChanged(layer, *data, c.change), c.words);
    KLB_CHECK_OK(RunChanged(layer, *data, [](Layer* l, Data*) { l->shape.batch = 0; }));
    KLB_CHECK_OK(RunChanged(layer, *data, [](Layer* l, Data* d) {
      l->shape.pad_left = 1 << 30, l->shape.stride_width = 1 << 30;  // two columns, which want two residuals
      d->residual.resize(l->shape.output_size()), d->epilogue.residual.codes = d->residual.data();
    }));
  }
  KLB_CHECK_OK(ForceKernel(""));
}

// Factors of one half and more take the vector forms, as long as twice the shifted total fits int32.
void CheckLargeFactors() {
  const int32_t multiplier[] = {1500000000, 1600000000, 1700000000}, shift[] = {0, 1, 3}, sums[kBlockChannels] = {};
  Epilogue epilogue;
  epilogue.type = OutputType::kInt8;
  epilogue.requantize.multiplier = multiplier, epilogue.requantize.shift = shift;
  const auto made = [&](int64_t max_abs_total) {
    Constants constants;
    KLB_CHECK_OK(MakeConstants({epilogue, 3, 1, kBlockChannels, max_abs_total, sums, 0}, true, &constants));
    return constants;
  };
  KLB_CHECK(made(9 * 128).has_fp32, "ternary sums of nine taps");
  KLB_CHECK(made((1 << 27) - 1).fast == PreparedEpilogue::Fast::kFixed, "the largest total that fits");
  KLB_CHECK(made(1 << 27).fast == PreparedEpilogue::Fast::kNo, "a total that does not");
}

// Pads that dwarf the image, and windows that never meet it.
void CheckFarPadding() {
  for (int64_t in : {3, 8}) {
    Random random(2);
    Layer layer;
    layer.shape.in_width = 3;
    layer.shape.in_channels = in;
    layer.shape.out_channels = 5;
    layer.shape.kernel_width = 2;
    layer.shape.pad_left = 1000;
    layer.shape.pad_right = 70000;
    layer.shape.stride_width = 500;
    layer.zero_point = 9;
    CheckLayer(layer, random);
  }
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  keras_lowbit::test::CheckErrors();
  keras_lowbit::test::CheckFp32Residual();
  keras_lowbit::test::CheckCache();
  keras_lowbit::test::CheckFarPadding();
  keras_lowbit::test::CheckLargeFactors();
  keras_lowbit::test::CheckThreads();
  keras_lowbit::test::CheckDepths();
  keras_lowbit::test::CheckWidths();
  return 0;
}
