// SIMD traits of AVX512-VNNI: 16 channels of int32, 64 bytes of weights.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/requantize.h"
#include "kernels/simd/generic.h"

namespace keras_lowbit {
namespace {

struct Avx512 {
  static constexpr int kChannels = 16, kBytes = 64;
  static constexpr bool kEpilogueInRegisters = true, kScalesWeights = true;
  using Totals = __m512i;
  using Weights = __m512i;
  using Activations = __m512i;
  using Bytes = __m512i;

  static Totals Init(const int32_t* init) { return _mm512_load_si512(init); }
  static Totals Zero() { return _mm512_setzero_si512(); }
  static Totals Add(Totals a, Totals b) { return _mm512_add_epi32(a, b); }
  static void Store(int32_t* to, Totals total) { _mm512_store_si512(to, total); }
  static Weights Load(const int8_t* from) { return _mm512_loadu_si512(from); }

  // vpdpbusd multiplies unsigned by signed bytes: x + 128, as unsigned, is x with its top bit flipped. The flip is
  // one instruction with the broadcast, and 128 * sum(w) comes off once, in `init`.
  static Activations Broadcast(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm512_xor_si512(_mm512_set1_epi32(four), _mm512_set1_epi8(-128));
  }
  // As text, because GCC 12 moves the totals of the intrinsic from register to register, and to memory, in a long
  // function.
  static Totals Dot(Totals total, Activations x, Weights w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(x), "v"(w));
    return total;
  }

  // Four bits hold two codes: one byte shuffle looks up the lower one, another the upper one.
  static void Decode(const uint8_t* from, Weights* w) {
    const __m512i lower = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2));
    const __m512i upper = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2));
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i codes = _mm512_loadu_si512(from);
    const __m512i low = _mm512_and_si512(codes, nibble), high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
    w[0] = _mm512_shuffle_epi8(lower, low);
    w[1] = _mm512_shuffle_epi8(upper, low);
    w[2] = _mm512_shuffle_epi8(lower, high);
    w[3] = _mm512_shuffle_epi8(upper, high);
  }
  static void DecodeBytes(const uint8_t* from, Bytes* w) { Decode(from, w); }
  static void StoreBytes(int8_t* to, Bytes w) { _mm512_storeu_si512(to, w); }

  // Each of 16 scales four times.
  static Bytes SpreadScales(const int8_t* scales) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
    return _mm512_mullo_epi32(wide, _mm512_set1_epi32(0x01010101));
  }
  static Bytes Scale(Bytes t, Bytes scale) {
    const __mmask64 negative = _mm512_movepi8_mask(t), some = _mm512_test_epi8_mask(t, t);
    return _mm512_maskz_mov_epi8(some, _mm512_mask_sub_epi8(scale, negative, _mm512_setzero_si512(), scale));
  }

  // Depthwise: bytes of four taps, a channel's four side by side. Unpacking works within 128-bit lanes: lane l of
  // result q holds channels 16 l + 4 q and on.
  static Bytes LoadChannels(const int8_t* from, int64_t count) {
    return _mm512_maskz_loadu_epi8(count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1, from);
  }
  static void StoreChannels(int8_t* to, Bytes codes, int64_t count) { _mm512_mask_storeu_epi8(to, Mask(count), codes); }
  static void Interleave(const Bytes* x, Bytes* four) {
    const __m512i low01 = _mm512_unpacklo_epi8(x[0], x[1]), high01 = _mm512_unpackhi_epi8(x[0], x[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(x[2], x[3]), high23 = _mm512_unpackhi_epi8(x[2], x[3]);
    four[0] = _mm512_unpacklo_epi16(low01, low23);
    four[1] = _mm512_unpackhi_epi16(low01, low23);
    four[2] = _mm512_unpacklo_epi16(high01, high23);
    four[3] = _mm512_unpackhi_epi16(high01, high23);
  }
  static Activations FromBytes(Bytes x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
  // Lane l of vector q and lane q of vector l change places.
  static void TransposeLanes(const __m512i* from, __m512i* to) {
    const __m512i a = _mm512_shuffle_i32x4(from[0], from[1], 0x44), b = _mm512_shuffle_i32x4(from[0], from[1], 0xEE);
    const __m512i c = _mm512_shuffle_i32x4(from[2], from[3], 0x44), d = _mm512_shuffle_i32x4(from[2], from[3], 0xEE);
    to[0] = _mm512_shuffle_i32x4(a, c, 0x88), to[1] = _mm512_shuffle_i32x4(a, c, 0xDD);
    to[2] = _mm512_shuffle_i32x4(b, d, 0x88), to[3] = _mm512_shuffle_i32x4(b, d, 0xDD);
  }
  static void StoreInterleaved(int32_t* to, const int32_t* init, const Totals* total) {
    __m512i lanes[4];
    TransposeLanes(total, lanes);
    KLB_UNROLL for (int l = 0; l < 4; ++l)
      Store(to + 16 * l, Add(lanes[l], Init(init + 16 * l)));
  }

  // round_half_up(x * multiplier / 2**31) for |x| < 2**30: (2 x * multiplier + 2**31) / 2**32, so that the result
  // is the upper half of each product. `odd` holds the multipliers of the odd channels.
  static __m512i HighMul(__m512i x, __m512i multiplier, __m512i odd) {
    const __m512i twice = _mm512_add_epi32(x, x), half = _mm512_set1_epi64(int64_t{1} << 31);
    const __m512i a = _mm512_add_epi64(_mm512_mul_epi32(twice, multiplier), half);
    const __m512i b = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(twice, 32), odd), half);
    return _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB);
  }

  // Halves away from zero: a nudge of one half, one less below zero, then round down. Without a shift there is no nudge.
  static __m512i ShiftRight(__m512i high, __m512i nudge, __m512i shift) {
    const __m512i below_zero = _mm512_min_epi32(_mm512_srli_epi32(high, 31), nudge);
    return _mm512_srav_epi32(_mm512_add_epi32(high, _mm512_sub_epi32(nudge, below_zero)), shift);
  }

  static __m512i Requantize(const ChannelBlock& block, __m512i total, int channel) {
    const __m512i x = _mm512_sllv_epi32(total, _mm512_load_si512(block.left + channel));
    const __m512i high = HighMul(x, _mm512_load_si512(block.multiplier + channel),
                                 _mm512_load_si512(block.multiplier_odd + channel));
    return ShiftRight(high, _mm512_load_si512(block.nudge + channel), _mm512_load_si512(block.shift + channel));
  }

  // layers/fp32_requantize.h: the same codes in a third of the instructions.
  static __m512i RequantizeFp32(__m512i total, __m512 factor, __m512i nudge) {
    const __m512 x = _mm512_cvtepi32_ps(total);
    // (x & sign) | nudge
    const __m512i away =
        _mm512_ternarylogic_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN), nudge, 0xEA);
    const __m512 real = _mm512_fmadd_ps(x, factor, _mm512_castsi512_ps(away));
    return _mm512_cvt_roundps_epi32(real, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static __m512i RequantizeFp32(const ChannelBlock& block, __m512i total, int channel) {
    return RequantizeFp32(total, _mm512_load_ps(block.fp32_factor + channel),
                          _mm512_load_si512(block.fp32_nudge + channel));
  }

  // round_half_away(total * factor) of 8 channels: cut, then one further out where a half or more was cut off.
  static __m256i RoundProduct(__m256i totals, const double* factor) {
    const __m512d real = _mm512_mul_pd(_mm512_cvtepi32_pd(totals), _mm512_load_pd(factor));
    const __m512d whole = _mm512_roundscale_pd(real, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    const __m512d cut = _mm512_abs_pd(_mm512_sub_pd(real, whole));
    const __mmask8 up = _mm512_cmp_pd_mask(cut, _mm512_set1_pd(0.5), _CMP_GE_OQ);
    const __m512d one = _mm512_or_pd(_mm512_and_pd(real, _mm512_set1_pd(-0.0)), _mm512_set1_pd(1.0));
    return _mm512_cvttpd_epi32(_mm512_mask_add_pd(whole, up, whole, one));
  }
  static __m512i RequantizeDouble(const int32_t* totals, const double* factor) {
    const auto* from = reinterpret_cast<const __m256i*>(totals);
    const __m256i low = RoundProduct(_mm256_load_si256(from), factor);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), RoundProduct(_mm256_load_si256(from + 1), factor + 8), 1);
  }

  static __m512i Multiply(__m512i x, const UniformFactor& factor) {
    const __m512i multiplier = _mm512_set1_epi32(factor.multiplier);
    const __m512i high = HighMul(x, multiplier, multiplier);
    return ShiftRight(high, _mm512_set1_epi32(factor.nudge()), _mm512_set1_epi32(factor.shift));
  }

  // 64 numbers + zero_point as bytes: in lane l those of lane l of all four vectors, one vector after the other.
  // Saturation to 16 bits on the way cannot change the result.
  static __m512i PackLanes(const __m512i* y, __m512i zero) {
    const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(y[0], y[1]), zero);
    const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(y[2], y[3]), zero);
    return _mm512_packs_epi16(a, b);
  }
  static __m512i PackLanes(const __m512i* y, int32_t zero_point) {
    return PackLanes(y, _mm512_set1_epi16(static_cast<int16_t>(zero_point)));
  }
  static __m512i Clamp(__m512i codes, int32_t low, int32_t high) {
    const __m512i least = _mm512_set1_epi8(static_cast<char>(low)), most = _mm512_set1_epi8(static_cast<char>(high));
    return _mm512_min_epi8(_mm512_max_epi8(codes, least), most);
  }
  // The zero point in 16 bits, the clamps in 8.
  struct CodeRange {
    CodeRange(int32_t zero_point, int32_t low, int32_t high)
        : zero(_mm512_set1_epi16(static_cast<int16_t>(zero_point))),
          least(_mm512_set1_epi8(static_cast<char>(low))),
          most(_mm512_set1_epi8(static_cast<char>(high))) {}
    __m512i zero, least, most;
  };
  // 64 numbers to clamp(number + zero_point), in order: doubleword 4 lane + j holds channels 16 j + 4 lane and on.
  static __m512i ToCodes(const __m512i* y, const CodeRange& range) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i codes = _mm512_permutexvar_epi32(order, PackLanes(y, range.zero));
    return _mm512_min_epi8(_mm512_max_epi8(codes, range.least), range.most);
  }
  static __m512i ToCodes(const __m512i* y, int32_t zero_point, int32_t low, int32_t high) {
    return ToCodes(y, CodeRange(zero_point, low, high));
  }

  static __m512i Centered(__m128i codes, int32_t zero_point) {
    return _mm512_slli_epi32(_mm512_sub_epi32(_mm512_cvtepi8_epi32(codes), _mm512_set1_epi32(zero_point)), kAddShift);
  }

  static __m512i AddResidual(const PreparedEpilogue& prepared, __m512i codes, __m512i other) {
    const ResidualAdd& add = prepared.definition->residual;
    alignas(64) int8_t mine[64], theirs[64];
    _mm512_store_si512(mine, codes);
    _mm512_store_si512(theirs, other);
    __m512i y[4];
    KLB_UNROLL for (int j = 0; j < 4; ++j) {
      const __m128i a = _mm_load_si128(reinterpret_cast<const __m128i*>(mine) + j);
      const __m128i b = _mm_load_si128(reinterpret_cast<const __m128i*>(theirs) + j);
      const __m512i sum =
          _mm512_add_epi32(Multiply(Centered(a, prepared.definition->requantize.zero_point), prepared.first),
                           Multiply(Centered(b, add.zero_point), prepared.second));
      y[j] = Multiply(sum, prepared.last);
    }
    return ToCodes(y, add.output_zero_point, add.clamp_min, add.clamp_max);
  }

  // ResidualAdd::fp32 for 16 numbers. y: the layer's own, neither clamped nor with their zero point.   other: codes.
  struct ResidualFp32 {
    explicit ResidualFp32(const Epilogue& epilogue)
        : low(_mm512_set1_epi32(epilogue.requantize.clamp_min - epilogue.requantize.zero_point)),
          high(_mm512_set1_epi32(epilogue.requantize.clamp_max - epilogue.requantize.zero_point)),
          own_factor(_mm512_set1_ps(epilogue.residual.fp32.own)),
          factor(_mm512_set1_ps(epilogue.residual.fp32.other)),
          offset(_mm512_set1_ps(epilogue.residual.fp32.offset)) {}
    __m512i operator()(__m512i y, __m128i other) const {
      const __m512 own = _mm512_cvtepi32_ps(_mm512_min_epi32(_mm512_max_epi32(y, low), high));
      const __m512 theirs = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(other));
      const __m512 real = _mm512_fmadd_ps(own, own_factor, _mm512_fmadd_ps(theirs, factor, offset));
      return _mm512_cvt_roundps_epi32(real, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    __m512i low, high;
    __m512 own_factor, factor, offset;
  };
  static __m512i AddResidualFp32(const PreparedEpilogue& prepared, const __m512i* y, __m512i other) {
    const ResidualFp32 sum_of(*prepared.definition);
    const ResidualAdd& add = prepared.definition->residual;
    const __m128i parts[4] = {_mm512_castsi512_si128(other), _mm512_extracti32x4_epi32(other, 1),
                              _mm512_extracti32x4_epi32(other, 2), _mm512_extracti32x4_epi32(other, 3)};
    __m512i sum[4];
    KLB_UNROLL for (int j = 0; j < 4; ++j)
      sum[j] = sum_of(y[j], parts[j]);
    return ToCodes(sum, add.output_zero_point, add.clamp_min, add.clamp_max);
  }

  // 16 * kVectors channels of kRows pixels, 64 codes in all, between a vector and an output whose pixels are `stride`
  // apart.
  template <int kRows>
  static __m512i LoadRows(const int8_t* from, int64_t stride, int64_t rows, int64_t channels) {
    if constexpr (kRows == 1) return _mm512_maskz_loadu_epi8(Mask(channels), from);
    if constexpr (kRows == 2) {
      const __m256i first = _mm256_maskz_loadu_epi8(Mask32(channels), from);
      const __m256i second = _mm256_maskz_loadu_epi8(rows > 1 ? Mask32(channels) : 0, from + stride);
      return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    }
    alignas(64) int8_t codes[64] = {};
    for (int64_t r = 0; r < rows; ++r) std::memcpy(codes + 64 / kRows * r, from + r * stride, channels);
    return _mm512_load_si512(codes);
  }
  template <int kRows>
  static void StoreRows(__m512i codes, int64_t stride, int64_t rows, int64_t channels, int8_t* to) {
    constexpr int kChannelsOfRow = 64 / kRows;
    if (kRows == 1) return _mm512_mask_storeu_epi8(to, Mask(channels), codes);
    if (kRows == 2) {
      _mm256_mask_storeu_epi8(to, Mask32(channels), _mm512_castsi512_si256(codes));
      if (rows > 1) _mm256_mask_storeu_epi8(to + stride, Mask32(channels), _mm512_extracti64x4_epi64(codes, 1));
      return;
    }
    if (stride == kChannelsOfRow && channels == stride)
      return _mm512_mask_storeu_epi8(to, Mask(kChannelsOfRow * rows), codes);
    alignas(64) int8_t bytes[96];  // 32 are read of a row of 16
    _mm512_store_si512(bytes, codes);
    for (int64_t r = 0; r < rows; ++r, to += stride) {
      const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + kChannelsOfRow * r));
      _mm256_mask_storeu_epi8(to, static_cast<__mmask32>(Mask(channels)), row);
    }
  }
  static __mmask32 Mask32(int64_t count) { return static_cast<__mmask32>(Mask(count)); }
  static __mmask64 Mask(int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

  // y: 64 requantized numbers, neither clamped nor with their zero point.
  template <int kRows>
  static void StoreCodes(const PreparedEpilogue& prepared, const __m512i* y, int64_t position, int64_t rows,
                         int64_t channels) {
    const keras_lowbit::Requantize& requantize = prepared.definition->requantize;
    int8_t* to = static_cast<int8_t*>(prepared.output) + position;
    __m512i codes;
    if (!prepared.has_residual) {
      codes = ToCodes(y, requantize.zero_point, requantize.clamp_min, requantize.clamp_max);
    } else {
      const int8_t* from = prepared.definition->residual.codes + position;
      const __m512i other = LoadRows<kRows>(from, prepared.pixel_stride, rows, channels);
      codes = prepared.definition->residual.fp32.is_exact
                  ? AddResidualFp32(prepared, y, other)
                  : AddResidual(prepared, ToCodes(y, requantize.zero_point, requantize.clamp_min, requantize.clamp_max),
                                other);
    }
    StoreRows<kRows>(codes, prepared.pixel_stride, rows, channels, to);
  }

  // Totals of 16 * kVectors channels of a pixel after the other, 64 in all, in fixed point or float32.
  template <int kVectors>
  __attribute__((always_inline)) static void ApplyEpilogueToVectors(const ChannelBlock& block,
                                                                    const PreparedEpilogue& prepared,
                                                                    const Totals* totals, int64_t position,
                                                                    int64_t rows, int64_t channels) {
    __m512i y[4];
    if (prepared.has_fp32) {
      KLB_UNROLL for (int j = 0; j < 4; ++j)
        y[j] = RequantizeFp32(block, totals[j], 16 * (j % kVectors));
    } else {
      KLB_UNROLL for (int j = 0; j < 4; ++j)
        y[j] = Requantize(block, totals[j], 16 * (j % kVectors));
    }
    StoreCodes<4 / kVectors>(prepared, y, position, rows, channels);
  }

  static void ApplyEpilogueToPixel(const ChannelBlock& block, const PreparedEpilogue& prepared, const int32_t* totals,
                                   int64_t position, int64_t channels) {
    const bool fixed = prepared.fast == PreparedEpilogue::Fast::kFixed;
    __m512i y[4];
    KLB_UNROLL for (int j = 0; j < 4; ++j) {
      y[j] = prepared.has_fp32 ? RequantizeFp32(block, _mm512_load_si512(totals + 16 * j), 16 * j)
             : fixed           ? Requantize(block, _mm512_load_si512(totals + 16 * j), 16 * j)
                               : RequantizeDouble(totals + 16 * j, block.factor + 16 * j);
    }
    StoreCodes<1>(prepared, y, position, 1, channels);
  }
};

}  // namespace
}  // namespace keras_lowbit
