// The fixed-point functions against the oracle's 64-bit arithmetic, at the edges of every shift.
#include "core/requantize.h"

#include <limits>
#include <random>

#include "test/check.h"
#include "test/oracle.h"

int main() {
  using namespace keras_lowbit;
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
