// The fixed-point functions against the oracle's 64-bit arithmetic, at the edges of every shift.
#include "core/requantize.h"

#include <cmath>
#include <limits>
#include <random>

#include "layers/fp32_requantize.h"
#include "test/check.h"
#include "test/oracle.h"

namespace keras_lowbit {
namespace {

// All float32 parameters that are found give the oracle's numbers, above all next to the steps; the factors of ternary
// sums have some.
void CheckFp32Requantize() {
  std::mt19937 random(9);
  Fp32Requantize fp32;
  for (const int32_t small : {1, 3, (1 << 30) - 1}) {
    KLB_CHECK(!FindFp32Requantize(small, -1, -128, 127, &fp32), "parameters for " + std::to_string(small));
  }
  KLB_CHECK(FindFp32Requantize(0, 0, -128, 127, &fp32), "none for multiplier 0");
  for (int32_t shift = -30; shift <= -1; ++shift) {
    int found = 0;
    for (int round = 0; round < 40; ++round) {
      const int32_t multiplier = round == 0   ? 1 << 30
                                 : round == 1 ? INT32_MAX
                                              : static_cast<int32_t>(random() >> 2) | (1 << 30);
      const int32_t low = -static_cast<int32_t>(random() % 256), high = low + 255;
      if (!FindFp32Requantize(multiplier, shift, low, high, &fp32)) continue;
      ++found;
      for (int i = 0; i < 20000; ++i) {
        const int64_t edge = std::llround((low + i % 256 - 0.5) / std::ldexp(multiplier, shift - 31)) + i / 256 % 5 - 2;
        const int64_t x = i % 2 ? oracle::Clip(edge, 1 - (1 << 30), (1 << 30) - 1)
                                : static_cast<int32_t>(random()) >> (2 + random() % 29);
        const auto real = static_cast<float>(x);
        const double got = std::nearbyint(std::fma(real, fp32.factor, std::copysign(fp32.nudge, real)));
        const int64_t want = oracle::Clip(oracle::Fixed(x, multiplier, shift), low, high);
        KLB_CHECK(oracle::Clip(static_cast<int64_t>(got), low, high) == want,
                  std::to_string(x) + " * " + std::to_string(multiplier) + " shift " + std::to_string(shift));
      }
    }
    KLB_CHECK(shift < -6 || found > 36, std::to_string(found) + " of 40 found for shift " + std::to_string(shift));
  }
}

}  // namespace
}  // namespace keras_lowbit

int main() {
  using namespace keras_lowbit;
  CheckFp32Requantize();
  std::mt19937 random(5);
  const int32_t edges[] = {
      0, 1, -1, 2, -2, 3, 127, -128, 1 << 29, -(1 << 29), (1 << 30) - 1, 1 << 30, -(1 << 30), INT32_MAX, INT32_MIN};
  for (int shift = -31; shift <= 31; ++shift) {
    for (int round = 0; round < 4000; ++round) {
      const auto drawn = static_cast<int32_t>(random());
      const int32_t x = round < 15 ? edges[round] : round % 2 ? drawn : drawn >> (random() % 31);
      const int32_t multiplier = round % 7 == 0 ? 1 << 30 : static_cast<int32_t>(random() >> 1) | (1 << 30);
      const int32_t got = MultiplyByQuantizedMultiplier(x, multiplier, shift);
      const int64_t want = oracle::Fixed(x, multiplier, shift);
      KLB_CHECK(got == want, std::to_string(x) + " * " + std::to_string(multiplier) + " shift " +
                                 std::to_string(shift) + ": " + std::to_string(got) + ", not " + std::to_string(want));
    }
  }
  // Ties and their neighbours: the fraction of x / 2 is one half for odd x.
  KLB_CHECK(
      MultiplyByDouble(3, 0.5) == 2 && MultiplyByDouble(-3, 0.5) == -2 && MultiplyByDouble(1, 0.49999999999999994) == 0,
      "");
  KLB_CHECK(MultiplyByDouble(1, 1e300) == INT32_MIN && MultiplyByDouble(-1, 2147483648.0) == INT32_MIN, "");
  KLB_CHECK(MultiplyByDouble(1, std::numeric_limits<double>::quiet_NaN()) == INT32_MIN, "");
  KLB_CHECK(RoundingDoublingHighMul(INT32_MIN, INT32_MIN) == INT32_MAX, "");
  KLB_CHECK(ToCode(INT32_MAX, 1, -128, 127) == -128, "int32 wraps before it is clipped, as in the reference");
  return 0;
}
