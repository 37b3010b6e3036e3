// The search: the real factor and its neighbours in float32, each with the middle of the nudges that it allows.
#include "layers/fp32_requantize.h"

#include <algorithm>
#include <cmath>

#include "core/requantize.h"
#include "kernels/prepared_epilogue.h"

namespace keras_lowbit {
namespace {

constexpr int64_t kMost = kFastTotalBound;  // totals lie strictly between -kMost and kMost
constexpr int kMaxSteps = 512;
constexpr int kTries = 40;

// at[i]: the smallest total whose number is at least `first + i`; kMost or 1 - kMost where every total is on one side.
struct Steps {
  int32_t first = 0, count = 0;
  int32_t at[kMaxSteps];
};

void FindSteps(int32_t multiplier, int32_t shift, int32_t low, int32_t high, Steps* steps) {
  const double factor = std::ldexp(static_cast<double>(multiplier), shift - 31);
  const auto number = [&](int64_t x) {
    return MultiplyByQuantizedMultiplier(static_cast<int32_t>(x), multiplier, shift);
  };
  steps->first = low + 1, steps->count = high - low;
  for (int32_t i = 0; i < steps->count; ++i) {
    const int32_t wanted = steps->first + i;
    const double about = std::clamp((wanted - 0.5) / factor, 1.0 - kMost, 1.0 * kMost);
    auto x = static_cast<int64_t>(about);
    while (x > 1 - kMost && number(x - 1) >= wanted) --x;
    while (x < kMost && number(x) < wanted) ++x;
    steps->at[i] = static_cast<int32_t>(x);
  }
}

int32_t Rounded(int64_t total, const Fp32Requantize& fp32) {
  const auto x = static_cast<float>(total);
  return static_cast<int32_t>(std::nearbyint(std::fma(x, fp32.factor, std::copysign(fp32.nudge, x))));
}

bool IsEqual(const Steps& steps, const Fp32Requantize& fp32) {
  for (int32_t i = 0; i < steps.count; ++i) {
    const int32_t wanted = steps.first + i;
    const int64_t at = steps.at[i];
    if (at < kMost && Rounded(at, fp32) < wanted) return false;
    if (at > 1 - kMost && Rounded(at - 1, fp32) >= wanted) return false;
  }
  return true;
}

// The nudge furthest from any step that it would move; never negative.
float MiddleNudge(const Steps& steps, double factor) {
  double least = 0, most = 1;
  for (int32_t i = 0; i < steps.count; ++i) {
    const double edge = steps.first + i - 0.5, at = steps.at[i], before = at - 1;
    if (at >= 0) least = std::max(least, edge - factor * at);
    if (at < 0) most = std::min(most, factor * at - edge);
    if (before >= 0) most = std::min(most, edge - factor * before);
    if (before < 0) least = std::max(least, factor * before - edge);
  }
  return static_cast<float>(std::max((least + most) / 2, 0.0));
}

}  // namespace

bool FindFp32Requantize(int32_t multiplier, int32_t shift, int32_t low, int32_t high, Fp32Requantize* found) {
  if (multiplier == 0) {
    *found = {};
    return true;
  }
  // Only multipliers as quantize_multiplier gives them: the double rounding of a small one moves steps so far from the
  // real factor's that the search for them would take seconds a channel.
  if (multiplier < int32_t{1} << 30) return false;
  Steps steps;
  FindSteps(multiplier, shift, low, high, &steps);
  float below = static_cast<float>(std::ldexp(static_cast<double>(multiplier), shift - 31));
  float above = std::nextafter(below, 1.0f);
  for (int tried = 0; tried < kTries; ++tried) {
    float& next = tried % 2 == 0 ? below : above;
    *found = {next, MiddleNudge(steps, next)};
    if (IsEqual(steps, *found)) return true;
    next = std::nextafter(next, tried % 2 == 0 ? 0.0f : 1.0f);
  }
  return false;
}

}  // namespace keras_lowbit
