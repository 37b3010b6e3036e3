// The search for ResidualAdd::fp32: real factors, then a few neighbours of them, each tried on every pair of codes.
#include "layers/fp32_residual.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/requantize.h"

namespace keras_lowbit {
namespace {

constexpr int kCodes = 256;

double Real(int32_t multiplier, int32_t shift) { return std::ldexp(static_cast<double>(multiplier), shift - 31); }

// The definition for every own code that the layer can give and every other: [own code][other code + 128].
std::vector<int8_t> AllSums(const Requantize& own, const ResidualAdd& add) {
  std::vector<int8_t> sums;
  sums.reserve(kCodes * kCodes);
  for (int32_t y = own.clamp_min; y <= own.clamp_max; ++y) {
    const int32_t first = ToAddGrid(y, own.zero_point, add.first_multiplier, add.first_shift);
    for (int32_t code = -128; code <= 127; ++code) {
      const int32_t second = ToAddGrid(code, add.zero_point, add.second_multiplier, add.second_shift);
      const int32_t sum =
          MultiplyByQuantizedMultiplier(WrapAdd(first, second), add.output_multiplier, add.output_shift);
      sums.push_back(ToCode(sum, add.output_zero_point, add.clamp_min, add.clamp_max));
    }
  }
  return sums;
}

bool IsEqual(const Fp32Residual& fp32, const Requantize& own, const ResidualAdd& add, const int8_t* sums) {
  for (int32_t y = own.clamp_min; y <= own.clamp_max; ++y) {
    for (int32_t code = -128; code <= 127; ++code) {
      const float second = std::fma(static_cast<float>(code), fp32.other, fp32.offset);
      const float real = std::fma(static_cast<float>(y - own.zero_point), fp32.own, second);
      if (!(std::fabs(real) < 1e6f)) return false;
      const auto sum = static_cast<int32_t>(std::nearbyint(real));
      if (ToCode(sum, add.output_zero_point, add.clamp_min, add.clamp_max) != *sums++) return false;
    }
  }
  return true;
}

bool IsCode(int32_t value) { return -128 <= value && value <= 127; }

bool IsSane(const Requantize& own, const ResidualAdd& add) {
  for (const int32_t code : {own.zero_point, own.clamp_min, own.clamp_max, add.zero_point, add.output_zero_point,
                             add.clamp_min, add.clamp_max}) {
    if (!IsCode(code)) return false;
  }
  for (const int32_t shift : {add.first_shift, add.second_shift, add.output_shift}) {
    if (shift < -31 || shift > 31) return false;
  }
  return own.clamp_min <= own.clamp_max && add.clamp_min <= add.clamp_max;
}

}  // namespace

Fp32Residual FindFp32Residual(const Requantize& own, const ResidualAdd& add) {
  if (!IsSane(own, add)) return {};
  // Within 2**-18 of a half the definition's own roundings decide, and a float near 128 is no finer than 2**-17.
  static constexpr float kOffsets[] = {0, 1, -1, 2, -2, 3, -3, 5, -5, 8, -8}, kUnit = 1.0f / (1 << 18);
  const std::vector<int8_t> sums = AllSums(own, add);
  const double back = Real(add.output_multiplier, add.output_shift) * (1 << kAddShift);
  const double first = Real(add.first_multiplier, add.first_shift) * back;
  const double second = Real(add.second_multiplier, add.second_shift) * back;
  Fp32Residual fp32;
  for (int step = 0; step < 9 && !fp32.is_exact; ++step) {
    fp32.own = static_cast<float>(first), fp32.other = static_cast<float>(second);
    if (step % 3 > 0) fp32.own = std::nextafter(fp32.own, step % 3 == 1 ? 0.0f : 2 * fp32.own);
    if (step / 3 > 0) fp32.other = std::nextafter(fp32.other, step / 3 == 1 ? 0.0f : 2 * fp32.other);
    for (const float offset : kOffsets) {
      fp32.offset = static_cast<float>(-second * add.zero_point) + offset * kUnit;
      fp32.is_exact = IsEqual(fp32, own, add, sums.data());
      if (fp32.is_exact) break;
    }
  }
  return fp32;
}

}  // namespace keras_lowbit
