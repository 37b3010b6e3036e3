// What tiles leave to vectors, on AVX512: unpacking, and the epilogue of 32 channels of two pixels at a time.
#pragma once

#include "kernels/simd/tiles.h"
#include "kernels/simd/x86_avx512.h"

namespace keras_lowbit {
namespace {

struct Avx512Panel : Avx512 {
  // Two of the four fields of Decode: those of each byte's lower or upper four bits.
  template <int kHalf>
  static void DecodeHalf(const uint8_t* from, Bytes* w) {
    const __m512i lower = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2));
    const __m512i upper = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2));
    const __m512i codes = _mm512_loadu_si512(from);
    const __m512i half = _mm512_and_si512(kHalf == 0 ? codes : _mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
    w[0] = _mm512_shuffle_epi8(lower, half);
    w[1] = _mm512_shuffle_epi8(upper, half);
  }

  // Two rows of totals.
  static void Requantize32(const ChannelBlock& block, const PreparedEpilogue& prepared, int channel,
                           const int32_t* totals, __m512i* y) {
    KLB_UNROLL for (int j = 0; j < 4; ++j) {
      const int at = channel + kFieldChannels * (j % 2);
      const int32_t* row = totals + kFieldChannels * j;
      y[j] = prepared.has_fp32                                ? RequantizeFp32(block, _mm512_load_si512(row), at)
             : prepared.fast == PreparedEpilogue::Fast::kFixed ? Requantize(block, _mm512_load_si512(row), at)
                                                               : RequantizeDouble(row, block.factor + at);
    }
  }

  // Where the codes of `count` pixels come from and go to: 32 channels, of which `channels` are real.
  struct Place {
    int8_t* to;
    const int8_t* residual;
    int64_t stride, count, channels;
  };

  // In float32. What the loop needs stays in registers: stored codes might be any of it.
  template <bool kResidual>
  static void StoreFp32(const ChannelBlock& block, const Epilogue& epilogue, int channel, const int32_t* totals,
                        Place place) {
    const keras_lowbit::Requantize& own = epilogue.requantize;
    const ResidualAdd& add = epilogue.residual;
    const CodeRange range = kResidual ? CodeRange(add.output_zero_point, add.clamp_min, add.clamp_max)
                                      : CodeRange(own.zero_point, own.clamp_min, own.clamp_max);
    const ResidualFp32 sum_of(epilogue);
    __m512 factor[2];
    __m512i nudge[2];
    __mmask16 real[2];
    KLB_UNROLL for (int f = 0; f < 2; ++f) {
      factor[f] = _mm512_load_ps(block.fp32_factor + channel + kFieldChannels * f);
      nudge[f] = _mm512_load_si512(block.fp32_nudge + channel + kFieldChannels * f);
      real[f] = static_cast<__mmask16>(Mask(place.channels) >> kFieldChannels * f);
    }
    auto [to, residual, stride, count, channels] = place;
    for (; count > 0; count -= 2, totals += 2 * kPanelChannels, to += 2 * stride) {
      __m512i y[4];
      KLB_UNROLL for (int j = 0; j < 4; ++j) {
        y[j] = RequantizeFp32(_mm512_load_si512(totals + kFieldChannels * j), factor[j % 2], nudge[j % 2]);
        if constexpr (kResidual) {
          const __mmask16 mask = j < 2 || count > 1 ? real[j % 2] : __mmask16{0};
          y[j] = sum_of(y[j], _mm_maskz_loadu_epi8(mask, residual + j / 2 * stride + kFieldChannels * (j % 2)));
        }
      }
      if constexpr (kResidual) residual += 2 * stride;
      StoreRows<2>(ToCodes(y, range), stride, count, channels, to);
    }
  }

  static void ApplyEpilogue(const TileTask& task, const PreparedEpilogue& prepared, int field, const int32_t* totals,
                            int64_t pixel, int64_t count) {
    const int channel = kFieldChannels * field;
    const int64_t first = task.first_channel + channel, channels = Least(task.channels - channel, kPanelChannels);
    if (prepared.fast == PreparedEpilogue::Fast::kNo)
      return ApplyScalar(prepared, totals, pixel, first, count, channels);
    const int64_t position = pixel * prepared.pixel_stride + first;
    if (prepared.has_fp32) {
      const Epilogue& epilogue = *prepared.definition;
      const Place place = {static_cast<int8_t*>(prepared.output) + position,
                           prepared.has_residual ? epilogue.residual.codes + position : nullptr, prepared.pixel_stride,
                           count, channels};
      if (!prepared.has_residual) return StoreFp32<false>(*task.constants, epilogue, channel, totals, place);
      if (epilogue.residual.fp32.is_exact)
        return StoreFp32<true>(*task.constants, epilogue, channel, totals, place);
    }
    for (int64_t r = 0; r < count; r += 2) {
      __m512i y[4];
      Requantize32(*task.constants, prepared, channel, totals + kPanelChannels * r, y);
      StoreCodes<2>(prepared, y, position + r * prepared.pixel_stride, Least(count - r, 2), channels);
    }
  }
};

}  // namespace
}  // namespace keras_lowbit
