// An independent definition of every layer: plain loops, 64-bit integers, no code shared with the library.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/epilogue.h"
#include "core/shapes.h"

namespace keras_lowbit::oracle {

inline int64_t Wrap32(int64_t x) {
  const int64_t modulus = int64_t{1} << 32, r = ((x % modulus) + modulus) % modulus;
  return r >= modulus / 2 ? r - modulus : r;
}

// floor(a / b), b > 0.
inline int64_t FloorDivide(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// round_half_away(round_half_up(x * 2**left * multiplier / 2**31) / 2**right).
inline int64_t Fixed(int64_t x, int64_t multiplier, int shift) {
  const int64_t left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
  const int64_t product = Wrap32(x * (int64_t{1} << left)) * multiplier;
  const int64_t high = FloorDivide(product + (int64_t{1} << 30), int64_t{1} << 31);
  const int64_t step = int64_t{1} << right, magnitude = ((high < 0 ? -high : high) + step / 2) / step;
  return high < 0 ? -magnitude : magnitude;
}

inline int64_t Clip(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

inline int64_t Code(const Epilogue& e, int64_t total, int64_t oc, int64_t position) {
  const Requantize& q = e.requantize;
  int64_t scaled;
  if (q.factor != nullptr) {
    const double real = static_cast<double>(total) * q.factor[oc];
    const double rounded = real < 0 ? -std::floor(-real + 0.5) : std::floor(real + 0.5);  // exact for |real| < 2**51
    scaled = std::fabs(rounded) < 2147483648.0 ? static_cast<int64_t>(rounded) : -(int64_t{1} << 31);
  } else {
    scaled = Fixed(total, q.multiplier[oc], q.shift[oc]);
  }
  const int64_t y = Clip(Wrap32(scaled + q.zero_point), q.clamp_min, q.clamp_max);
  const ResidualAdd& r = e.residual;
  if (r.codes == nullptr) return y;
  const int64_t a = Fixed((y - q.zero_point) * (1 << 20), r.first_multiplier, r.first_shift);
  const int64_t b = Fixed((int64_t{r.codes[position]} - r.zero_point) * (1 << 20), r.second_multiplier, r.second_shift);
  const int64_t sum = Fixed(Wrap32(a + b), r.output_multiplier, r.output_shift);
  return Clip(Wrap32(sum + r.output_zero_point), r.clamp_min, r.clamp_max);
}

inline double Output(const Epilogue& e, int64_t total, int64_t oc, int64_t position) {
  total = Wrap32(total + (e.bias == nullptr ? 0 : e.bias[oc]));
  if (e.type == OutputType::kInt32) return static_cast<double>(total);
  if (e.type == OutputType::kInt8) return static_cast<double>(Code(e, total, oc, position));
  const float scaled = static_cast<float>(total) * e.float_scale[oc];
  return scaled < e.float_min ? e.float_min : scaled > e.float_max ? e.float_max : scaled;
}

// One output of a convolution: kernel HWIO as int8. Depthwise: `depthwise`, kernel [KH, KW, C, M].
inline int64_t Sum(const ConvShape& s, const int8_t* kernel, const int8_t* x, int32_t zero_point, bool depthwise,
                   int64_t n, int64_t oy, int64_t ox, int64_t oc) {
  const int64_t per_group = depthwise ? 1 : s.in_channels / s.groups;
  const int64_t first =
      depthwise ? oc / (s.out_channels / s.in_channels) : oc / (s.out_channels / s.groups) * per_group;
  int64_t sum = 0;
  for (int64_t i = 0; i < s.kernel_height; ++i) {
    for (int64_t j = 0; j < s.kernel_width; ++j) {
      const int64_t iy = oy * s.stride_height - s.pad_top + i * s.dilation_height;
      const int64_t ix = ox * s.stride_width - s.pad_left + j * s.dilation_width;
      if (iy < 0 || iy >= s.in_height || ix < 0 || ix >= s.in_width) continue;
      for (int64_t c = 0; c < per_group; ++c) {
        const int64_t pixel = ((n * s.in_height + iy) * s.in_width + ix) * s.in_channels + first + c;
        sum +=
            (int64_t{x[pixel]} - zero_point) * kernel[((i * s.kernel_width + j) * per_group + c) * s.out_channels + oc];
      }
    }
  }
  return sum;
}

inline std::vector<double> Conv(const ConvShape& s, const int8_t* kernel, const int8_t* x, int32_t zero_point,
                                const Epilogue& e, bool depthwise = false) {
  std::vector<double> y;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t oy = 0; oy < s.out_height(); ++oy) {
      for (int64_t ox = 0; ox < s.out_width(); ++ox) {
        for (int64_t oc = 0; oc < s.out_channels; ++oc) {
          y.push_back(
              Output(e, Sum(s, kernel, x, zero_point, depthwise, n, oy, ox, oc), oc, static_cast<int64_t>(y.size())));
        }
      }
    }
  }
  return y;
}

}  // namespace keras_lowbit::oracle
