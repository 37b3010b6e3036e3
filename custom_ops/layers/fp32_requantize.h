// Requantization as one float32 expression, where it gives the same code for every total.
#pragma once

#include <cstdint>

namespace keras_lowbit {

struct Fp32Requantize {
  float factor = 0, nudge = 0;
};

//   round(fma(total, factor, copysign(nudge, total)))       float32, the fma and the rounding to even done once each
//
// clamped to [low, high] equals MultiplyByQuantizedMultiplier(total, multiplier, shift) clamped to it, for all |total|
// < kFastTotalBound. Both grow with the total, so it is enough to compare them on either side of each of the high - low
// steps. False where no parameters are found: the large factors of ternary sums nearly always have some, the small ones
// of int8 sums do not, and multipliers below 2**30, which quantize_multiplier never gives, are not searched.
// multiplier >= 0, -30 <= shift <= -1, or both 0; -256 <= low <= high <= 256.
bool FindFp32Requantize(int32_t multiplier, int32_t shift, int32_t low, int32_t high, Fp32Requantize* found);

}  // namespace keras_lowbit
