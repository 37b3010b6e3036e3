// From real scales to what an int8 output is made with: a multiplier, a shift and an int32 bias for each channel.
// In double, step by step as keras_lowbit/deploy/packed/integer_call.py (codes) computes them on TensorFlow.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "core/requantize.h"

namespace keras_lowbit {

struct OutputFactor {
  int32_t multiplier, shift, bias;
};

// real = multiplier * 2**(shift - 31), 2**30 <= multiplier < 2**31; real >= 0. Factors below 2**-32 become 0.
KLB_HOST_DEVICE inline OutputFactor QuantizeMultiplier(double real) {
  uint64_t bits;
  std::memcpy(&bits, &real, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 52) - 1022;
  const uint64_t mantissa = (bits & ((uint64_t{1} << 52) - 1)) | (uint64_t{1} << 52);  // fraction * 2**53
  const uint64_t fixed = (mantissa + (uint64_t{1} << 21)) >> 22;
  const bool carries = fixed == uint64_t{1} << 31;
  const int shift = exponent + (carries ? 1 : 0);
  if (shift < -31) return {0, 0, 0};
  return {static_cast<int32_t>(carries ? uint64_t{1} << 30 : fixed), shift, 0};
}

// scale: real size of the integer 1 of the channel's weights.   bias: in reals.   input_scale, output_scale: of the codes.
KLB_HOST_DEVICE inline OutputFactor OutputFactorOf(float scale, float bias, float input_scale, float output_scale) {
  OutputFactor factor = QuantizeMultiplier(double{input_scale} * scale / output_scale);
  const double step = double{scale * input_scale};
  factor.bias = step == 0 ? 0 : ToInt32(std::nearbyint(bias / step));
  return factor;
}

}  // namespace keras_lowbit
