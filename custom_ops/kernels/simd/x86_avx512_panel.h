// What tiles leave to vectors, on AVX512: unpacking, and the epilogue of 32 channels of two pixels at a time.
#pragma once

#include "kernels/simd/tiles.h"
#include "kernels/simd/x86_avx512.h"

namespace keras_lowbit {
namespace {

struct Avx512Panel : Avx512 {
  // Two rows of totals: 32 channels of each, from 16 * field on.
  static void Requantize32(const ChannelBlock& block, const PreparedEpilogue& prepared, int field,
                           const int32_t* totals, __m512i* y) {
    const bool fixed = prepared.fast == PreparedEpilogue::Fast::kFixed;
    KLB_UNROLL for (int j = 0; j < 4; ++j) {
      const int32_t* row = totals + kBlockChannels * (j / 2);
      const int channel = kFieldChannels * (field + j % 2);
      y[j] = prepared.has_fp32 ? RequantizeFp32(block, _mm512_load_si512(row + channel), channel)
             : fixed           ? Requantize(block, _mm512_load_si512(row + channel), channel)
                               : RequantizeDouble(block, row, channel);
    }
  }

  static void ApplyEpilogue(const TileTask& task, const PreparedEpilogue& prepared, int field, const int32_t* totals,
                            int64_t pixel, int64_t count) {
    const int64_t first = task.first_channel + kFieldChannels * field;
    const int64_t channels = Least(task.channels - kFieldChannels * field, kPanelChannels);
    if (prepared.fast == PreparedEpilogue::Fast::kNo) {
      prepared.apply_scalar(prepared, totals + kFieldChannels * field, pixel, first, count, channels);
      return;
    }
    for (int64_t r = 0; r < count; r += 2) {
      __m512i y[4];
      Requantize32(*task.constants, prepared, field, totals + kBlockChannels * r, y);
      StoreCodes<2>(prepared, y, (pixel + r) * prepared.pixel_stride + first, Least(count - r, 2), channels);
    }
  }
};

}  // namespace
}  // namespace keras_lowbit
