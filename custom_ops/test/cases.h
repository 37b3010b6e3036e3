// Layers with all their data, drawn from a seed, and the comparison of every ISA target with the oracle.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/isa.h"
#include "layers/fp32_residual.h"
#include "layers/layer_cache.h"
#include "layers/layers.h"
#include "test/check.h"
#include "test/oracle.h"

namespace keras_lowbit::test {

using Random = std::mt19937;

inline int64_t Between(Random& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}

enum class Fill { kRandom, kAllMin, kAllMax, kAlternating, kZero, kSparse };
constexpr Fill kFills[] = {Fill::kRandom, Fill::kAllMin, Fill::kAllMax, Fill::kAlternating, Fill::kZero, Fill::kSparse};

// `count` values in [low, high]. Copies are exactly as long as they say, so that a sanitizer sees a read too far.
inline std::vector<int8_t> Filled(Random& random, int64_t count, Fill fill, int low, int high) {
  std::vector<int8_t> values(count);
  for (int64_t i = 0; i < count; ++i) {
    const int drawn = static_cast<int>(Between(random, low, high));
    const int values_of[] = {drawn, low, high, i % 2 == 0 ? low : high, 0, random() % 8 == 0 ? drawn : 0};
    values[i] = static_cast<int8_t>(values_of[static_cast<int>(fill)]);
  }
  return values;
}

enum class Kind { kTernary, kInt8, kDepthwise };

struct Layer {
  ConvShape shape;
  Kind kind = Kind::kTernary;
  int64_t cluster_size = 0;
  bool has_scales = false, scales_per_tap = false;
  Fill fill_x = Fill::kRandom, fill_w = Fill::kRandom;
  int32_t zero_point = 0;
  OutputType type = OutputType::kInt32;
  bool in_double = false, has_bias = true, has_residual = false, odd_factors = false;
  bool large_factors = false;  // those of ternary sums, which float32 requantizes
};

inline std::string Describe(const Layer& l) {
  const ConvShape& s = l.shape;
  const int64_t numbers[] = {s.batch,
                             s.in_height,
                             s.in_width,
                             s.in_channels,
                             s.out_channels,
                             s.kernel_height,
                             s.kernel_width,
                             s.stride_height,
                             s.stride_width,
                             s.dilation_height,
                             s.dilation_width,
                             s.pad_top,
                             s.pad_bottom,
                             s.pad_left,
                             s.pad_right,
                             s.groups,
                             l.cluster_size,
                             l.has_scales,
                             l.scales_per_tap,
                             static_cast<int64_t>(l.fill_x),
                             static_cast<int64_t>(l.fill_w),
                             l.zero_point,
                             static_cast<int64_t>(l.type),
                             l.in_double,
                             l.has_bias,
                             l.has_residual,
                             l.odd_factors,
                             l.large_factors};
  std::string text = l.kind == Kind::kTernary ? "ternary" : l.kind == Kind::kInt8 ? "int8" : "depthwise";
  text +=
      " n,h,w,ic,oc,kh,kw,sh,sw,dh,dw,pt,pb,pl,pr,groups,cluster,scales,per_tap,fill_x,fill_w,zp,type,double,bias,res,"
      "odd,large";
  for (int64_t number : numbers) text += " " + std::to_string(number);
  return text;
}

// The arrays of one layer. `kernel` is HWIO with the scales multiplied in, as the oracle wants it.
struct Data {
  std::vector<int8_t> x, kernel, scales, residual;
  std::vector<uint8_t> codes;
  std::vector<int32_t> sums, bias, multiplier, shift;
  std::vector<double> factor;
  std::vector<float> float_scale;
  PackedWeights weights;
  Epilogue epilogue;
};

inline void DrawWeights(const Layer& l, Random& random, Data* d) {
  const ConvShape& s = l.shape;
  const int64_t count = s.taps() * (s.in_channels / s.groups) * s.out_channels;
  d->weights.layout = l.kind == Kind::kTernary ? WeightLayout::kTernary2Bit : WeightLayout::kInt8;
  d->weights.cluster_size = l.cluster_size;
  d->weights.scales_per_tap = l.scales_per_tap;
  if (l.kind == Kind::kDepthwise) {
    d->kernel = Filled(random, s.taps() * s.out_channels, l.fill_w, -128, 127);
    return;
  }
  d->kernel =
      l.kind == Kind::kTernary ? Filled(random, count, l.fill_w, -1, 1) : Filled(random, count, l.fill_w, -128, 127);
  const WeightSizes sizes = WeightSizesOf(s, d->weights);
  if (l.has_scales) {
    d->scales = Filled(random, sizes.scales_bytes_total, random() % 4 == 0 ? Fill::kAllMax : Fill::kRandom, 0, 127);
    d->weights.scales = d->scales.data();
    d->weights.scales_bytes = sizes.scales_bytes_total;
  }
  d->codes.resize(sizes.codes_bytes_total);
  d->sums.resize(sizes.sums_count_total);
  KLB_CHECK_OK(PackWeights(s, d->weights, d->kernel.data(), d->codes.data(), d->sums.data()));
  d->weights.codes = d->codes.data();
  d->weights.codes_bytes = sizes.codes_bytes_total;
  d->weights.sums = d->sums.data();
  d->weights.sums_count = sizes.sums_count_total;
  KLB_CHECK_OK(UnpackWeights(s, d->weights, d->kernel.data()));
}

// Factors that bring a typical sum into int8; odd ones reach every shift, also none and to the left.
inline void DrawEpilogue(const Layer& l, Random& random, Data* d) {
  const int64_t outputs = l.shape.out_channels;
  Epilogue& e = d->epilogue;
  e.type = l.type;
  for (int64_t c = 0; c < outputs; ++c) {
    d->bias.push_back(static_cast<int32_t>(Between(random, -3000, 3000)));
    // A power of two in four: their results are full of ties.
    d->multiplier.push_back(random() % 4 == 0 ? 1 << 30 : static_cast<int32_t>(Between(random, 1 << 30, INT32_MAX)));
    d->shift.push_back(static_cast<int32_t>(l.odd_factors ? Between(random, -31, 31)
                                                          : Between(random, l.large_factors ? -6 : -14,
                                                                  l.large_factors ? 2 : -1)));
    if (random() % 16 == 0) d->multiplier[c] = 0, d->shift[c] = 0;
    d->factor.push_back(std::ldexp(d->multiplier[c], d->shift[c] - 31));
    d->float_scale.push_back(static_cast<float>(d->factor[c]));
  }
  if (l.has_bias) e.bias = d->bias.data();
  e.requantize.multiplier = d->multiplier.data();
  e.requantize.shift = d->shift.data();
  e.requantize.factor = l.in_double ? d->factor.data() : nullptr;
  e.requantize.zero_point = static_cast<int32_t>(Between(random, -128, 127));
  e.requantize.clamp_min = random() % 2 ? -128 : static_cast<int32_t>(Between(random, -128, 20));
  e.requantize.clamp_max = random() % 2 ? 127 : static_cast<int32_t>(Between(random, 20, 127));
  e.float_scale = d->float_scale.data();
  if (random() % 2) e.float_min = 0.0f, e.float_max = 6.0f;
  if (!l.has_residual) return;
  ResidualAdd& r = e.residual;
  d->residual = Filled(random, l.shape.output_size(), Fill::kRandom, -128, 127);
  r.codes = d->residual.data();
  r.zero_point = static_cast<int32_t>(Between(random, -128, 127));
  r.output_zero_point = static_cast<int32_t>(Between(random, -128, 127));
  const bool half = random() % 2;  // the larger input scale always gives exactly one half
  r.first_multiplier = half ? 1 << 30 : static_cast<int32_t>(Between(random, 1 << 30, INT32_MAX));
  r.first_shift = half ? 0 : static_cast<int32_t>(Between(random, -5, -1));
  r.second_multiplier = half ? static_cast<int32_t>(Between(random, 1 << 30, INT32_MAX)) : 1 << 30;
  r.second_shift = half ? static_cast<int32_t>(Between(random, -5, -1)) : 0;
  r.output_multiplier = static_cast<int32_t>(Between(random, 1 << 30, INT32_MAX));
  r.output_shift = static_cast<int32_t>(Between(random, -20, l.odd_factors ? 0 : -15));
  r.clamp_min = random() % 2 ? -128 : static_cast<int32_t>(Between(random, -128, 0));
  if (random() % 8 == 0) r.fp32 = FindFp32Residual(e.requantize, r);
}

inline std::unique_ptr<Data> Draw(const Layer& layer, Random& random) {
  auto data = std::make_unique<Data>();
  data->x = Filled(random, layer.shape.input_size(), layer.fill_x, -128, 127);
  DrawWeights(layer, random, data.get());
  DrawEpilogue(layer, random, data.get());
  return data;
}

// The oracle's numbers.
inline std::vector<double> Wanted(const Layer& layer, const Data& d) {
  return oracle::Conv(layer.shape, d.kernel.data(), d.x.data(), layer.zero_point, d.epilogue,
                      layer.kind == Kind::kDepthwise);
}

// in_place: y holds the residual before the call.
inline Status RunLayer(const Layer& l, const Data& d, void* y, const ParallelFor& parallel, LayerCache* cache = nullptr,
                       bool in_place = false) {
  Epilogue epilogue = d.epilogue;
  if (in_place) epilogue.residual.codes = static_cast<const int8_t*>(y);
  if (l.kind == Kind::kDepthwise) {
    return DepthwiseConv2D(l.shape, d.kernel.data(), d.x.data(), l.zero_point, epilogue, y, parallel, cache);
  }
  return Conv2D(l.shape, d.weights, d.x.data(), l.zero_point, epilogue, y, parallel, cache);
}

inline double At(OutputType type, const std::vector<uint8_t>& y, int64_t i) {
  if (type == OutputType::kInt8) return static_cast<int8_t>(y[i]);
  int32_t bits;
  std::memcpy(&bits, y.data() + 4 * i, 4);
  if (type == OutputType::kInt32) return bits;
  float real;
  std::memcpy(&real, &bits, 4);
  return real;
}

inline void CheckEqual(const Layer& layer, const std::vector<uint8_t>& y, const std::vector<double>& want,
                       const std::string& how) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double got = At(layer.type, y, static_cast<int64_t>(i));
    KLB_CHECK(got == want[i], how + " gave " + std::to_string(got) + ", not " + std::to_string(want[i]) + ", at " +
                                  std::to_string(i) + " of " + Describe(layer));
  }
}

// The targets that this CPU runs, those that emulate a machine too.
inline std::vector<std::string> TestedKernels() {
  std::vector<std::string> names;
  for (const KernelInfo& info : CompiledKernels()) {
    if (info.supported) names.push_back(info.name);
  }
  return names;
}

// Runs the layer on every ISA target, without and twice with a cache, which all targets share, into memory of
// its own and into that of the residual, and wants the oracle's numbers.
inline void CheckLayer(const Layer& layer, Random& random, const ParallelFor& parallel = nullptr) {
  const auto data = Draw(layer, random);
  const auto want = Wanted(layer, *data);
  LayerCache shared;
  const std::vector<uint8_t> other(data->residual.begin(), data->residual.end());
  for (const std::string& isa : TestedKernels()) {
    KLB_CHECK_OK(ForceKernel(isa));
    for (LayerCache* cache : {static_cast<LayerCache*>(nullptr), &shared, &shared}) {
      std::vector<uint8_t> y(want.size() * (layer.type == OutputType::kInt8 ? 1 : 4), 0x5A);
      KLB_CHECK_OK(RunLayer(layer, *data, y.data(), parallel, cache));
      CheckEqual(layer, y, want, isa + (cache ? ", cached," : ""));
      if (!layer.has_residual) continue;
      y = other;
      KLB_CHECK_OK(RunLayer(layer, *data, y.data(), parallel, cache, true));
      CheckEqual(layer, y, want, isa + (cache ? ", cached and in place," : ", in place,"));
    }
  }
  KLB_CHECK_OK(ForceKernel(""));
}

}  // namespace keras_lowbit::test
