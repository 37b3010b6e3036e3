// SIMD traits of Armv8.2 with the dot product: signed by signed, so no offset.
#pragma once

#include "kernels/simd/arm_common.h"

namespace keras_lowbit {
namespace {

struct ArmDotprod : ArmCommon {
  using Totals = int32x4_t;

  static Totals Init(const int32_t* init) { return vld1q_s32(init); }
  static Totals Zero() { return vdupq_n_s32(0); }
  static Totals Add(Totals a, Totals b) { return vaddq_s32(a, b); }
  static void Store(int32_t* to, Totals total) { vst1q_s32(to, total); }
  static Totals Dot(Totals total, Activations x, Weights w) { return vdotq_s32(total, w, x); }
  static void StoreInterleaved(int32_t* to, const int32_t* init, const Totals* total) {
    for (int q = 0; q < 4; ++q) Store(to + 4 * q, Add(total[q], Init(init + 4 * q)));
  }
};

}  // namespace
}  // namespace keras_lowbit
