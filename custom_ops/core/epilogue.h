// What follows the int32 total of a layer: bias, requantization to int8 with an optional residual ADD, or a factor.
//
//   total[pixel][oc]  = sum over taps and channels of (x - input_zero_point) * w[oc]  + bias[oc]     (int32, wraps)
//   kInt8    y = clamp(requantize(total) + zero_point), then the optional residual ADD
//   kInt32   y = total
//   kFloat   y = clamp(float(total) * float_scale[oc])     one rounding of the product; no fused multiply-add
#pragma once

#include <cstdint>

namespace keras_lowbit {

enum class OutputType : int32_t { kInt8 = 0, kInt32 = 1, kFloat = 2 };

// int32 total -> int8 code, exactly as LiteRT's reference kernels. Either `multiplier` and `shift` (convolutions:
// fixed point, rounded twice: core/requantize.h) or `factor` (FULLY_CONNECTED: in double, halves away from zero,
// rounded once). One value per output channel. Shifts lie in [-31, 31], positive means left.
struct Requantize {
  const int32_t* multiplier = nullptr;
  const int32_t* shift = nullptr;
  const double* factor = nullptr;
  int32_t zero_point = 0;
  int32_t clamp_min = -128, clamp_max = 127;  // the fused activation; zero point included
};

// Parameters of a residual ADD in float32; see ResidualAdd.
struct Fp32Residual {
  bool is_exact = false;  // equal to the definition for every pair of codes
  float own = 0, other = 0, offset = 0;
};

// LiteRT's ADD of the layer's int8 codes and `codes` (same shape as the output), grid 2 * max(s1, s2) / 2**20:
//   a = fixed((y - y_zero_point) << 20, first), b = fixed((codes - zero_point) << 20, second)
//   out = clamp(fixed(a + b, output) + output_zero_point)
// Multiplier and shift of s1 / grid, s2 / grid, grid / (2**20 * s_out) as `quantize_multiplier` gives them.
// `fp32` may stand in for all of it where it is exact, each fma and the rounding to even done once:
//   out = clamp(round(fma(y - y_zero_point, own, fma(codes, other, offset))) + output_zero_point)
struct ResidualAdd {
  const int8_t* codes = nullptr;  // null: no residual; may be the output's memory
  int32_t zero_point = 0;
  int32_t first_multiplier = 0, first_shift = 0;    // of the layer's own codes
  int32_t second_multiplier = 0, second_shift = 0;  // of `codes`
  int32_t output_multiplier = 0, output_shift = 0;
  int32_t output_zero_point = 0;
  int32_t clamp_min = -128, clamp_max = 127;
  Fp32Residual fp32;  // from FindFp32Residual, or left as it is
};

struct Epilogue {
  OutputType type = OutputType::kInt8;
  const int32_t* bias = nullptr;       // [out_channels], null: zeros
  Requantize requantize;               // kInt8
  ResidualAdd residual;                // kInt8
  const float* float_scale = nullptr;  // kFloat, [out_channels]
  float float_min = -3.402823466e38f, float_max = 3.402823466e38f;
};

}  // namespace keras_lowbit
