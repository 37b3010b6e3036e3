// Multipliers, shifts and biases of int8 outputs by the standard library's frexp: what the CUDA kernel must give.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "test/cases.h"

namespace keras_lowbit::test {

struct FactorCase {
  std::vector<float> scale, bias;
  float input_scale = 0.037f, output_scale = 0.041f;
};

// Scales of all sizes, the ends among them; biases of up to thousands of steps, and far beyond.
inline FactorCase DrawFactors(Random& random) {
  FactorCase c;
  for (int i = 0; i < 500; ++i) {
    const float exponent = static_cast<float>(Between(random, -60, 10));
    c.scale.push_back(std::ldexp(1.0f + Between(random, 0, (1 << 23) - 1) / 8388608.0f, static_cast<int>(exponent)));
    c.bias.push_back(c.scale.back() * Between(random, -100000, 100000) / 16.0f);
  }
  for (const float scale : {0.0f, 1e-45f, 0.5f, 1.0f, 2.0f - 1.0f / 8388608.0f}) {
    c.scale.push_back(scale), c.bias.push_back(1e30f);
  }
  return c;
}

inline std::vector<int32_t> WantedFactors(const FactorCase& c) {
  const size_t channels = c.scale.size();
  std::vector<int32_t> want(3 * channels);
  for (size_t i = 0; i < channels; ++i) {
    int shift = 0;
    const double real = static_cast<double>(c.input_scale) * c.scale[i] / c.output_scale;
    int64_t fixed = std::llround(std::frexp(real, &shift) * 2147483648.0);
    if (fixed == int64_t{1} << 31) fixed /= 2, ++shift;
    const bool vanishes = fixed == 0 || shift < -31;
    want[i] = vanishes ? 0 : static_cast<int32_t>(fixed), want[channels + i] = vanishes ? 0 : shift;
    const double step = c.scale[i] * c.input_scale, steps = step == 0 ? 0 : std::rint(c.bias[i] / step);
    want[2 * channels + i] = std::abs(steps) < 2147483648.0 ? static_cast<int32_t>(steps) : INT32_MIN;
  }
  return want;
}

}  // namespace keras_lowbit::test
