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

  // In float32, without a residual. What the loop needs stays in registers: stored codes might be any of it.
  static void StoreFp32(const ChannelBlock& block, const PreparedEpilogue& prepared, int channel, const int32_t* totals,
                        int8_t* to, int64_t count, int64_t channels) {
    const keras_lowbit::Requantize& requantize = prepared.definition->requantize;
    const CodeRange range(requantize.zero_point, requantize.clamp_min, requantize.clamp_max);
    __m512 factor[2];
    __m512i nudge[2];
    KLB_UNROLL for (int f = 0; f < 2; ++f) {
      factor[f] = _mm512_load_ps(block.fp32_factor + channel + kFieldChannels * f);
      nudge[f] = _mm512_load_si512(block.fp32_nudge + channel + kFieldChannels * f);
    }
    const int64_t stride = prepared.pixel_stride;
    for (int64_t r = 0; r < count; r += 2, totals += 2 * kPanelChannels, to += 2 * stride) {
      __m512i y[4];
      KLB_UNROLL for (int j = 0; j < 4; ++j) {
        const __m512i total = _mm512_load_si512(totals + kFieldChannels * j);
        y[j] = RequantizeFp32(total, factor[j % 2], nudge[j % 2]);
      }
      StoreRows<2>(ToCodes(y, range), stride, count - r, channels, to);
    }
  }

  static void ApplyEpilogue(const TileTask& task, const PreparedEpilogue& prepared, int field, const int32_t* totals,
                            int64_t pixel, int64_t count) {
    const int channel = kFieldChannels * field;
    const int64_t first = task.first_channel + channel, channels = Least(task.channels - channel, kPanelChannels);
    if (prepared.fast == PreparedEpilogue::Fast::kNo)
      return ApplyScalar(prepared, totals, pixel, first, count, channels);
    const int64_t position = pixel * prepared.pixel_stride + first;
    if (prepared.has_fp32 && !prepared.has_residual) {
      int8_t* to = static_cast<int8_t*>(prepared.output) + position;
      return StoreFp32(*task.constants, prepared, channel, totals, to, count, channels);
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
