// The kinds of weights that benchmarks compare, and a network's data with random ones: packed on the CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "bench/network_bench.h"
#include "core/output_factors.h"

namespace keras_lowbit::bench {

struct WeightsKind {
  const char* name;
  WeightLayout layout;
  int64_t cluster_size;
};

constexpr WeightsKind kWeightsKinds[] = {{"ternary", WeightLayout::kTernary2Bit, 0},
                                         {"clusters of 64", WeightLayout::kTernary2Bit, 64},
                                         {"clusters of 4", WeightLayout::kTernary2Bit, 4},
                                         {"int8", WeightLayout::kInt8, 0}};

// The arrays of one layer.
struct StepArrays {
  std::vector<uint8_t> codes;
  std::vector<int8_t> scales, kernel;
  std::vector<int32_t> sums, multiplier, shift, bias;
};

// Random weights and constants with which codes neither vanish nor all saturate.
class NetworkData {
 public:
  NetworkData(const Network& network, const WeightsKind& kind, uint32_t seed) : random_(seed) {
    for (const Step& step : network.steps) {
      arrays_.push_back(std::make_unique<StepArrays>());
      data_.emplace_back();
      if (step.kind == StepKind::kConv) DrawWeights(step.shape, kind);
      if (step.kind == StepKind::kAverage) {
        arrays_.back()->kernel.assign(step.shape.taps() * step.shape.in_channels, 1);
        data_.back().kernel = arrays_.back()->kernel.data();
        SetFactor(step.shape.out_channels, 1.0 / step.shape.taps());
      }
      if (step.kind != StepKind::kMaxPool) SetCodes(network, step);
    }
  }

  const std::vector<StepData>& data() const { return data_; }
  const std::vector<std::unique_ptr<StepArrays>>& arrays() const { return arrays_; }

  int64_t weight_bytes() const {
    int64_t total = 0;
    for (const auto& arrays : arrays_) total += static_cast<int64_t>(arrays->codes.size() + arrays->scales.size());
    return total;
  }

 private:
  int Between(int low, int high) { return low + static_cast<int>(random_() % static_cast<uint32_t>(high - low + 1)); }

  void DrawWeights(const ConvShape& s, const WeightsKind& kind) {
    StepArrays& arrays = *arrays_.back();
    PackedWeights& weights = data_.back().weights;
    weights.layout = kind.layout, weights.cluster_size = kind.cluster_size;
    const bool ternary = kind.layout == WeightLayout::kTernary2Bit;
    const WeightSizes sizes = WeightSizesOf(s, weights);
    arrays.codes.resize(sizes.codes_bytes_total), arrays.sums.resize(sizes.sums_count_total);
    if (kind.cluster_size > 0) {
      arrays.scales.resize(sizes.scales_bytes_total);
      for (int8_t& scale : arrays.scales) scale = static_cast<int8_t>(Between(1, 127));
      weights.scales = arrays.scales.data(), weights.scales_bytes = sizes.scales_bytes_total;
    }
    std::vector<int8_t> kernel(s.taps() * s.in_channels * s.out_channels);
    for (int8_t& weight : kernel) weight = static_cast<int8_t>(ternary ? Between(-1, 1) : Between(-127, 127));
    const Status packed = PackWeights(s, weights, kernel.data(), arrays.codes.data(), arrays.sums.data());
    if (!packed.ok()) std::abort();
    weights.codes = arrays.codes.data(), weights.codes_bytes = sizes.codes_bytes_total;
    weights.sums = arrays.sums.data(), weights.sums_count = sizes.sums_count_total;
    const double spread = ternary ? std::sqrt(2.0 / 3) * (kind.cluster_size > 0 ? 73 : 1) : 73;
    SetFactor(s.out_channels, 0.7 / (spread * std::sqrt(static_cast<double>(s.taps() * s.in_channels))));
  }

  void SetFactor(int64_t channels, double real) {
    StepArrays& arrays = *arrays_.back();
    const OutputFactor factor = QuantizeMultiplier(real);
    for (int64_t c = 0; c < channels; ++c) {
      arrays.multiplier.push_back(factor.multiplier - Between(0, 1 << 20));
      arrays.shift.push_back(factor.shift);
      arrays.bias.push_back(Between(-50, 50));
    }
    Epilogue& epilogue = data_.back().epilogue;
    epilogue.requantize.multiplier = arrays.multiplier.data(), epilogue.requantize.shift = arrays.shift.data();
    epilogue.bias = arrays.bias.data();
  }

  // Zero points and clamps. A residual of the layer's own scale, onto a scale half as large again.
  void SetCodes(const Network& network, const Step& step) {
    Epilogue& epilogue = data_.back().epilogue;
    const int32_t zero_point = network.tensors[step.output].zero_point, lowest = step.relu ? zero_point : -128;
    epilogue.requantize.zero_point = step.residual >= 0 ? 0 : zero_point;
    if (step.residual < 0) epilogue.requantize.clamp_min = lowest;
    if (step.residual < 0) return;
    ResidualAdd& add = epilogue.residual;
    add.zero_point = network.tensors[step.residual].zero_point;
    add.output_zero_point = zero_point, add.clamp_min = lowest;
    const OutputFactor half = QuantizeMultiplier(0.5), back = QuantizeMultiplier(std::ldexp(2.0 / 1.5, -kAddShift));
    add.first_multiplier = add.second_multiplier = half.multiplier, add.first_shift = add.second_shift = half.shift;
    add.output_multiplier = back.multiplier, add.output_shift = back.shift;
  }

  std::mt19937 random_;
  std::vector<std::unique_ptr<StepArrays>> arrays_;
  std::vector<StepData> data_;
};

}  // namespace keras_lowbit::bench
