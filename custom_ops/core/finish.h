// The epilogue of one total, as core/epilogue.h defines it: what CPU and GPU compute a number at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/epilogue.h"
#include "core/host_device.h"
#include "core/requantize.h"

namespace keras_lowbit {

// What brings the totals of one channel to the output's steps: `factor` where `in_double`, else the other two.
struct ChannelFactor {
  bool in_double;
  int32_t multiplier, shift;
  double factor;
};

KLB_HOST_DEVICE inline ChannelFactor FactorOf(const Requantize& requantize, int64_t channel) {
  if (requantize.factor != nullptr) return {true, 0, 0, requantize.factor[channel]};
  return {false, requantize.multiplier[channel], requantize.shift[channel], 0};
}

KLB_HOST_DEVICE inline int8_t Requantized(const Requantize& requantize, const ChannelFactor& by, int32_t total) {
  const int32_t scaled =
      by.in_double ? MultiplyByDouble(total, by.factor) : MultiplyByQuantizedMultiplier(total, by.multiplier, by.shift);
  return ToCode(scaled, requantize.zero_point, requantize.clamp_min, requantize.clamp_max);
}

// code, zero_point: the layer's own.   other: the residual's code at that place.
KLB_HOST_DEVICE inline int8_t AddResidual(const ResidualAdd& add, int32_t code, int32_t zero_point, int32_t other) {
  const int32_t first = ToAddGrid(code, zero_point, add.first_multiplier, add.first_shift);
  const int32_t second = ToAddGrid(other, add.zero_point, add.second_multiplier, add.second_shift);
  const int32_t sum = MultiplyByQuantizedMultiplier(WrapAdd(first, second), add.output_multiplier, add.output_shift);
  return ToCode(sum, add.output_zero_point, add.clamp_min, add.clamp_max);
}

KLB_HOST_DEVICE inline float Rescaled(const Epilogue& epilogue, int32_t total, float scale) {
  return std::min(std::max(static_cast<float>(total) * scale, epilogue.float_min), epilogue.float_max);
}

}  // namespace keras_lowbit
