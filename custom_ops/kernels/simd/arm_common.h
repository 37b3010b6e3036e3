// What the Arm targets share: 128-bit loads, decoding, scales, and the exact epilogue.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "core/requantize.h"
#include "kernels/simd/generic.h"

namespace keras_lowbit {
namespace {

struct ArmCommon {
  static constexpr int kChannels = 4, kBytes = 16;
  static constexpr bool kEpilogueInRegisters = false, kScalesWeights = true;
  using Bytes = int8x16_t;
  using Weights = int8x16_t;
  using Activations = int8x16_t;

  static Weights Load(const int8_t* from) { return vld1q_s8(from); }
  static Activations Broadcast(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }

  static void DecodeBytes(const uint8_t* from, Bytes* w) {
    const uint8x16_t three = vdupq_n_u8(3), codes = vld1q_u8(from);
    const int8x16_t one = vdupq_n_s8(1);
    w[0] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(codes, three)), one);
    w[1] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 2), three)), one);
    w[2] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 4), three)), one);
    w[3] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(codes, 6)), one);
  }
  static void Decode(const uint8_t* from, Weights* w) { DecodeBytes(from, w); }
  static void StoreBytes(int8_t* to, Bytes w) { vst1q_s8(to, w); }

  // Each of 4 scales four times.
  static Bytes SpreadScales(const int8_t* scales) {
    static constexpr uint8_t kOrder[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    return vqtbl1q_s8(Broadcast(scales), vld1q_u8(kOrder));
  }
  static Bytes Scale(Bytes t, Bytes scale) { return vmulq_s8(t, scale); }

  // Depthwise: bytes of four taps, a channel's four side by side, in the order of the channels.
  static Bytes LoadChannels(const int8_t* from, int64_t count) {
    if (count >= kBytes) return vld1q_s8(from);
    int8_t some[16] = {};
    std::memcpy(some, from, static_cast<size_t>(count));
    return vld1q_s8(some);
  }
  static void Interleave(const Bytes* x, Bytes* four) {
    const int8x16x2_t first = vzipq_s8(x[0], x[1]), second = vzipq_s8(x[2], x[3]);
    for (int half = 0; half < 2; ++half) {
      const int16x8x2_t pairs =
          vzipq_s16(vreinterpretq_s16_s8(first.val[half]), vreinterpretq_s16_s8(second.val[half]));
      four[2 * half] = vreinterpretq_s8_s16(pairs.val[0]);
      four[2 * half + 1] = vreinterpretq_s8_s16(pairs.val[1]);
    }
  }
  static Activations FromBytes(Bytes x) { return x; }

  // round_half_away(x / 2**shift): the halves below zero are made a little smaller first. `right` is -shift.
  static int32x4_t RoundingShift(int32x4_t x, int32x4_t right) {
    const int32x4_t fixup = vshrq_n_s32(vandq_s32(x, right), 31);
    return vrshlq_s32(vqaddq_s32(x, fixup), right);
  }

  static int32x4_t Requantize(const ChannelBlock& block, const int32_t* totals, int channel) {
    const int32x4_t x = vshlq_s32(vld1q_s32(totals + channel), vld1q_s32(block.left + channel));
    const int32x4_t high = vqrdmulhq_s32(x, vld1q_s32(block.multiplier + channel));
    return RoundingShift(high, vnegq_s32(vld1q_s32(block.shift + channel)));
  }
  // vcvta rounds halves away from zero.
  static int32x4_t RequantizeDouble(const ChannelBlock& block, const int32_t* totals, int channel) {
    const int32x4_t total = vld1q_s32(totals + channel);
    const float64x2_t low = vcvtq_f64_s64(vmovl_s32(vget_low_s32(total))), high = vcvtq_f64_s64(vmovl_high_s32(total));
    const int64x2_t a = vcvtaq_s64_f64(vmulq_f64(low, vld1q_f64(block.factor + channel)));
    const int64x2_t b = vcvtaq_s64_f64(vmulq_f64(high, vld1q_f64(block.factor + channel + 2)));
    return vcombine_s32(vmovn_s64(a), vmovn_s64(b));
  }
  static int32x4_t Multiply(int32x4_t x, const UniformFactor& factor) {
    return RoundingShift(vqrdmulhq_n_s32(x, factor.multiplier), vdupq_n_s32(-factor.shift));
  }

  // 16 numbers to clamp(number + zero_point). Saturation to 16 bits on the way cannot change the result.
  static int8x16_t ToCodes(const int32x4_t* y, int32_t zero_point, int32_t low, int32_t high) {
    const int16x8_t zero = vdupq_n_s16(static_cast<int16_t>(zero_point));
    const int16x8_t a = vqaddq_s16(vcombine_s16(vqmovn_s32(y[0]), vqmovn_s32(y[1])), zero);
    const int16x8_t b = vqaddq_s16(vcombine_s16(vqmovn_s32(y[2]), vqmovn_s32(y[3])), zero);
    const int8x16_t codes = vcombine_s8(vqmovn_s16(a), vqmovn_s16(b));
    return vminq_s8(vmaxq_s8(codes, vdupq_n_s8(static_cast<int8_t>(low))), vdupq_n_s8(static_cast<int8_t>(high)));
  }

  static int32x4_t Centered(int8x16_t codes, int j, int32_t zero_point) {
    int8_t bytes[16];
    vst1q_s8(bytes, codes);
    int32_t numbers[4];
    for (int i = 0; i < 4; ++i) numbers[i] = (bytes[4 * j + i] - zero_point) * (1 << kAddShift);
    return vld1q_s32(numbers);
  }

  static int8x16_t AddResidual(const PreparedEpilogue& prepared, int8x16_t codes, int8x16_t other) {
    const ResidualAdd& add = prepared.definition->residual;
    int32x4_t y[4];
    for (int j = 0; j < 4; ++j) {
      const int32x4_t mine = Multiply(Centered(codes, j, prepared.definition->requantize.zero_point), prepared.first);
      y[j] = Multiply(vaddq_s32(mine, Multiply(Centered(other, j, add.zero_point), prepared.second)), prepared.last);
    }
    return ToCodes(y, add.output_zero_point, add.clamp_min, add.clamp_max);
  }

  // 16 channels at a time, the ragged end by way of a buffer.
  static void ApplyEpilogueToPixel(const ChannelBlock& block, const PreparedEpilogue& prepared, const int32_t* totals,
                                   int64_t position, int64_t channels) {
    const keras_lowbit::Requantize& requantize = prepared.definition->requantize;
    const bool fixed = prepared.fast == PreparedEpilogue::Fast::kFixed;
    for (int64_t from = 0; from < channels; from += 16) {
      const size_t count = channels - from < 16 ? channels - from : 16;
      int32x4_t y[4];
      for (int j = 0; j < 4; ++j) {
        const int channel = static_cast<int>(from) + 4 * j;
        y[j] = fixed ? Requantize(block, totals, channel) : RequantizeDouble(block, totals, channel);
      }
      int8x16_t codes = ToCodes(y, requantize.zero_point, requantize.clamp_min, requantize.clamp_max);
      if (prepared.has_residual) {
        int8_t other[16] = {};
        std::memcpy(other, prepared.definition->residual.codes + position + from, count);
        codes = AddResidual(prepared, codes, vld1q_s8(other));
      }
      int8_t bytes[16];
      vst1q_s8(bytes, codes);
      std::memcpy(static_cast<int8_t*>(prepared.output) + position + from, bytes, count);
    }
  }
};

}  // namespace
}  // namespace keras_lowbit
