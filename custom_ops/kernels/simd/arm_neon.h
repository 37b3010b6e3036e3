// SIMD traits of any 64-bit Arm.
#pragma once

#include "kernels/simd/arm_common.h"

namespace keras_lowbit {
namespace {

// One product of two bytes fits 16 bits, also -128 * -128, and two of them are added into 32 bits at once. Each
// channel has two totals, which meet at the end. (8-bit products with -1, 0, 1 would overflow at -(-128).)
struct ArmNeon : ArmCommon {
  struct Totals {
    int32x4_t low, high;  // two channels each, two totals a channel
  };

  static Totals Init(const int32_t* init) {
    const int32x4_t bias = vld1q_s32(init), zero = vdupq_n_s32(0);
    return {vzip1q_s32(bias, zero), vzip2q_s32(bias, zero)};
  }
  static Totals Zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Totals Add(const Totals& a, const Totals& b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
  static void Store(int32_t* to, const Totals& total) { vst1q_s32(to, vpaddq_s32(total.low, total.high)); }
  static Totals Dot(const Totals& total, Activations x, Weights w) {
    return {vpadalq_s16(total.low, vmull_s8(vget_low_s8(x), vget_low_s8(w))),
            vpadalq_s16(total.high, vmull_high_s8(x, w))};
  }
  static void StoreInterleaved(int32_t* to, const int32_t* init, const Totals* total) {
    for (int q = 0; q < 4; ++q) Store(to + 4 * q, Add(total[q], Init(init + 4 * q)));
  }
};

}  // namespace
}  // namespace keras_lowbit
