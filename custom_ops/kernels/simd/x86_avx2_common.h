// What AVX2 and AVX-VNNI share: 256-bit loads, decoding, scales, and the exact epilogue.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/requantize.h"
#include "kernels/simd/generic.h"

namespace keras_lowbit {
namespace {

struct Avx2Common {
  static constexpr int kChannels = 8, kBytes = 32;
  static constexpr bool kEpilogueInRegisters = false, kScalesWeights = true;
  using Bytes = __m256i;

  static __m256i LoadVector(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static void StoreVector(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
  static __m256i BroadcastFour(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
  }

  // Four bits hold two codes: one byte shuffle looks up the lower one, another the upper one.
  static void DecodeBytes(const uint8_t* from, Bytes* w) {
    const __m256i lower =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2));
    const __m256i upper =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i codes = LoadVector(from);
    const __m256i low = _mm256_and_si256(codes, nibble), high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
    w[0] = _mm256_shuffle_epi8(lower, low);
    w[1] = _mm256_shuffle_epi8(upper, low);
    w[2] = _mm256_shuffle_epi8(lower, high);
    w[3] = _mm256_shuffle_epi8(upper, high);
  }
  static void StoreBytes(int8_t* to, Bytes w) { StoreVector(to, w); }

  // Each of 8 scales four times; scales are never negative, so vpsignb is the product with -1, 0, 1.
  static Bytes SpreadScales(const int8_t* scales) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales)));
    return _mm256_mullo_epi32(wide, _mm256_set1_epi32(0x01010101));
  }
  static Bytes Scale(Bytes t, Bytes scale) { return _mm256_sign_epi8(scale, t); }

  // Depthwise: see x86_avx512.h; lane l of result q holds channels 16 l + 4 q and on.
  static Bytes LoadChannels(const int8_t* from, int64_t count) {
    if (count >= kBytes) return LoadVector(from);
    if (count == 16) return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    alignas(32) int8_t some[32] = {};
    std::memcpy(some, from, static_cast<size_t>(count));
    return LoadVector(some);
  }
  static void StoreChannels(int8_t* to, Bytes codes, int64_t count) {
    if (count >= kBytes) return StoreVector(to, codes);
    alignas(32) int8_t some[32];
    StoreVector(some, codes);
    std::memcpy(to, some, static_cast<size_t>(count));
  }
  static void Interleave(const Bytes* x, Bytes* four) {
    const __m256i low01 = _mm256_unpacklo_epi8(x[0], x[1]), high01 = _mm256_unpackhi_epi8(x[0], x[1]);
    const __m256i low23 = _mm256_unpacklo_epi8(x[2], x[3]), high23 = _mm256_unpackhi_epi8(x[2], x[3]);
    four[0] = _mm256_unpacklo_epi16(low01, low23);
    four[1] = _mm256_unpackhi_epi16(low01, low23);
    four[2] = _mm256_unpacklo_epi16(high01, high23);
    four[3] = _mm256_unpackhi_epi16(high01, high23);
  }
  static void StoreInterleaved(int32_t* to, const int32_t* init, const __m256i* total) {
    const __m256i lanes[4] = {
        _mm256_permute2x128_si256(total[0], total[1], 0x20), _mm256_permute2x128_si256(total[2], total[3], 0x20),
        _mm256_permute2x128_si256(total[0], total[1], 0x31), _mm256_permute2x128_si256(total[2], total[3], 0x31)};
    KLB_UNROLL for (int j = 0; j < 4; ++j)
      StoreVector(to + 8 * j, _mm256_add_epi32(lanes[j], LoadVector(init + 8 * j)));
  }

  // round_half_up(x * multiplier / 2**31) for |x| < 2**30: see x86_avx512.h.
  static __m256i HighMul(__m256i x, __m256i multiplier, __m256i odd) {
    const __m256i twice = _mm256_add_epi32(x, x), half = _mm256_set1_epi64x(int64_t{1} << 31);
    const __m256i a = _mm256_add_epi64(_mm256_mul_epi32(twice, multiplier), half);
    const __m256i b = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(twice, 32), odd), half);
    return _mm256_blend_epi32(_mm256_shuffle_epi32(a, 0xF5), b, 0xAA);
  }

  static __m256i ShiftRight(__m256i high, __m256i nudge, __m256i shift) {
    const __m256i below_zero = _mm256_min_epi32(_mm256_srli_epi32(high, 31), nudge);
    return _mm256_srav_epi32(_mm256_add_epi32(high, _mm256_sub_epi32(nudge, below_zero)), shift);
  }

  static __m256i Requantize(const ChannelBlock& block, __m256i total, int channel) {
    const __m256i x = _mm256_sllv_epi32(total, LoadVector(block.left + channel));
    const __m256i high = HighMul(x, LoadVector(block.multiplier + channel),
                                 LoadVector(block.multiplier_odd + channel));
    return ShiftRight(high, LoadVector(block.nudge + channel), LoadVector(block.shift + channel));
  }

  // layers/fp32_requantize.h: the same codes in a third of the instructions. Rounds to even, as every thread does by default.
  static __m256i RequantizeFp32(const ChannelBlock& block, __m256i total, int channel) {
    const __m256 x = _mm256_cvtepi32_ps(total);
    const __m256 nudge = _mm256_or_ps(_mm256_and_ps(x, _mm256_set1_ps(-0.0f)), _mm256_loadu_ps(block.fp32_nudge + channel));
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(x, _mm256_loadu_ps(block.fp32_factor + channel), nudge));
  }

  // round_half_away(total * factor) of 4 channels: see x86_avx512.h.
  static __m128i RoundProduct(const int32_t* totals, const double* factor) {
    const __m256d real = _mm256_mul_pd(_mm256_cvtepi32_pd(_mm_loadu_si128(reinterpret_cast<const __m128i*>(totals))),
                                       _mm256_loadu_pd(factor));
    const __m256d sign = _mm256_and_pd(real, _mm256_set1_pd(-0.0));
    const __m256d whole = _mm256_round_pd(real, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    const __m256d cut = _mm256_xor_pd(_mm256_sub_pd(real, whole), sign);
    const __m256d up = _mm256_cmp_pd(cut, _mm256_set1_pd(0.5), _CMP_GE_OQ);
    return _mm256_cvttpd_epi32(_mm256_add_pd(whole, _mm256_and_pd(up, _mm256_or_pd(sign, _mm256_set1_pd(1.0)))));
  }
  static __m256i RequantizeDouble(const ChannelBlock& block, const int32_t* totals, int channel) {
    return _mm256_set_m128i(RoundProduct(totals + channel + 4, block.factor + channel + 4),
                            RoundProduct(totals + channel, block.factor + channel));
  }

  static __m256i Multiply(__m256i x, const UniformFactor& factor) {
    const __m256i multiplier = _mm256_set1_epi32(factor.multiplier);
    const __m256i high = HighMul(x, multiplier, multiplier);
    return ShiftRight(high, _mm256_set1_epi32(factor.nudge()), _mm256_set1_epi32(factor.shift));
  }

  // See x86_avx512.h: 32 numbers + zero_point as bytes, lane by lane, and in order.
  static __m256i PackLanes(const __m256i* y, int32_t zero_point) {
    const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
    const __m256i a = _mm256_adds_epi16(_mm256_packs_epi32(y[0], y[1]), zero);
    const __m256i b = _mm256_adds_epi16(_mm256_packs_epi32(y[2], y[3]), zero);
    return _mm256_packs_epi16(a, b);
  }
  static __m256i Clamp(__m256i codes, int32_t low, int32_t high) {
    const __m256i least = _mm256_set1_epi8(static_cast<char>(low)), most = _mm256_set1_epi8(static_cast<char>(high));
    return _mm256_min_epi8(_mm256_max_epi8(codes, least), most);
  }
  static __m256i ToCodes(const __m256i* y, int32_t zero_point, int32_t low, int32_t high) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return Clamp(_mm256_permutevar8x32_epi32(PackLanes(y, zero_point), order), low, high);
  }

  static __m256i Centered(const int8_t* codes, int32_t zero_point) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    return _mm256_slli_epi32(_mm256_sub_epi32(wide, _mm256_set1_epi32(zero_point)), kAddShift);
  }

  // 32 codes; `codes` in memory, the result in their place.
  static void AddResidual(const PreparedEpilogue& prepared, const int8_t* other, int8_t* codes) {
    const ResidualAdd& add = prepared.definition->residual;
    __m256i y[4];
    KLB_UNROLL for (int j = 0; j < 4; ++j) {
      const __m256i mine =
          Multiply(Centered(codes + 8 * j, prepared.definition->requantize.zero_point), prepared.first);
      const __m256i theirs = Multiply(Centered(other + 8 * j, add.zero_point), prepared.second);
      y[j] = Multiply(_mm256_add_epi32(mine, theirs), prepared.last);
    }
    StoreVector(codes, ToCodes(y, add.output_zero_point, add.clamp_min, add.clamp_max));
  }

  // Whole halves of a block are read and written in place, the ragged end by way of a buffer.
  static void ApplyEpilogueToPixel(const ChannelBlock& block, const PreparedEpilogue& prepared, const int32_t* totals,
                                   int64_t position, int64_t channels) {
    const keras_lowbit::Requantize& requantize = prepared.definition->requantize;
    const bool fixed = prepared.fast == PreparedEpilogue::Fast::kFixed;
    for (int64_t from = 0; from < channels; from += 32) {
      const size_t count = channels - from < 32 ? channels - from : 32;
      alignas(32) int8_t codes[32], other[32] = {};
      __m256i y[4];
      KLB_UNROLL for (int j = 0; j < 4; ++j) {
        const int channel = static_cast<int>(from) + 8 * j;
        y[j] = prepared.has_fp32 ? RequantizeFp32(block, LoadVector(totals + channel), channel)
               : fixed           ? Requantize(block, LoadVector(totals + channel), channel)
                                 : RequantizeDouble(block, totals, channel);
      }
      StoreVector(codes, ToCodes(y, requantize.zero_point, requantize.clamp_min, requantize.clamp_max));
      if (prepared.has_residual) {
        std::memcpy(other, prepared.definition->residual.codes + position + from, count);
        AddResidual(prepared, other, codes);
      }
      std::memcpy(static_cast<int8_t*>(prepared.output) + position + from, codes, count);
    }
  }
};

}  // namespace
}  // namespace keras_lowbit
