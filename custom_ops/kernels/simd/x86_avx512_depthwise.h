// Depthwise layers of AVX512-VNNI whose totals never leave the registers.
//
// Interleaving the bytes of four taps leaves the channels in an order of its own (DepthwiseKernel::Slot), and packing sums to
// codes undoes it. So the constants are put into that order once a call, and no pixel's totals are transposed. Of a window
// of 3x3 the three rows of a column are interleaved, and a fourth byte that meets a weight of zero: the column serves up
// to three output pixels, as the right one, the middle one and the left one.
#pragma once

#include "kernels/simd/x86_avx512.h"

namespace keras_lowbit {
namespace {

// Channels 16 l + 4 q + i from or to place 4 (4 q + l) + i: lanes l of vectors q and q of l change places.
inline void TransposeLanes(const void* from, void* to) {
  __m512i x[4], y[4];
  KLB_UNROLL for (int i = 0; i < 4; ++i)
    x[i] = _mm512_loadu_si512(static_cast<const char*>(from) + 64 * i);
  Avx512::TransposeLanes(x, y);
  KLB_UNROLL for (int i = 0; i < 4; ++i)
    _mm512_store_si512(static_cast<char*>(to) + 64 * i, y[i]);
}

// What a call brings into the order of interleaved channels.
struct InterleavedLayer {
  explicit InterleavedLayer(const BlockArgs& args) {
    const ChannelBlock& given = *args.constants;
    TransposeLanes(given.init, block.init);
    TransposeLanes(given.multiplier, block.multiplier);
    TransposeLanes(given.multiplier_odd, block.multiplier_odd);
    TransposeLanes(given.shift, block.shift);
    TransposeLanes(given.nudge, block.nudge);
    TransposeLanes(given.fp32_factor, block.fp32_factor);
    TransposeLanes(given.fp32_nudge, block.fp32_nudge);
    if (args.taps == 9) PackColumns(static_cast<const uint8_t*>(args.weights));
  }

  // Taps 0 to 8 of a channel, four a word, as the columns (0, 3, 6), (1, 4, 7), (2, 5, 8).
  void PackColumns(const uint8_t* weights) {
    uint32_t taps[3][kBlockChannels];
    std::memcpy(taps, weights, sizeof taps);
    for (int c = 0; c < kBlockChannels; ++c) {
      const uint32_t a = taps[0][c], b = taps[1][c], last = taps[2][c];
      columns[0][c] = (a & 255) | (a >> 24) << 8 | (b >> 16 & 255) << 16;
      columns[1][c] = (a >> 8 & 255) | (b & 255) << 8 | (b >> 24) << 16;
      columns[2][c] = (a >> 16 & 255) | (b >> 8 & 255) << 8 | (last & 255) << 16;
    }
  }

  ChannelBlock block;
  alignas(kAlignment) uint32_t columns[3][kBlockChannels];
};

// Four taps, or three and whatever meets a weight of zero, of 64 channels.
struct FourTaps {
  __m512i four[4];

  FourTaps() = default;
  FourTaps(const __m512i* x) { Avx512::Interleave(x, four); }

  __attribute__((always_inline)) void AddTo(__m512i* total, const void* weights) const {
    KLB_UNROLL for (int q = 0; q < 4; ++q)
      total[q] = Avx512::Dot(total[q], four[q], _mm512_loadu_si512(static_cast<const char*>(weights) + 64 * q));
  }
};

struct DepthwiseRun {
  const BlockArgs& args;
  const InterleavedLayer& layer;
  const __mmask64 mask;

  DepthwiseRun(const BlockArgs& args, const InterleavedLayer& layer)
      : args(args), layer(layer), mask(Avx512::Mask(args.channels)) {}

  // As unsigned bytes, x + 128.
  __m512i Load(int64_t tap, int64_t pixel) const {
    const int8_t* row = args.rows[tap * args.tap_stride + pixel] + args.channel_offset;
    return Avx512::FromBytes(_mm512_maskz_loadu_epi8(mask, row));
  }

  FourTaps Column(int64_t column, int64_t pixel) const {
    const __m512i last = Load(column + 6, pixel), x[4] = {Load(column, pixel), Load(column + 3, pixel), last, last};
    return FourTaps(x);
  }

  // Whether column `from` of the pixel before stands where column `to` of this one does.
  bool Same(int64_t from, int64_t to, int64_t pixel) const {
    const int8_t* const* now = args.rows + to * args.tap_stride + pixel;
    const int8_t* const* before = args.rows + from * args.tap_stride + pixel - 1;
    const int64_t row = 3 * args.tap_stride;
    return now[0] == before[0] && now[row] == before[row] && now[2 * row] == before[2 * row];
  }

  void Init(__m512i* total) const {
    KLB_UNROLL for (int q = 0; q < 4; ++q)
      total[q] = Avx512::Init(layer.block.init + 16 * q);
  }

  __attribute__((always_inline)) void Finish(const __m512i* total, int64_t pixel) const {
    const PreparedEpilogue& prepared = *args.epilogue;
    const Requantize& requantize = prepared.definition->requantize;
    __m512i y[4];
    KLB_UNROLL for (int q = 0; q < 4; ++q)
      y[q] = prepared.has_fp32 ? Avx512::RequantizeFp32(layer.block, total[q], 16 * q)
                               : Avx512::Requantize(layer.block, total[q], 16 * q);
    const __m512i codes =
        Avx512::Clamp(Avx512::PackLanes(y, requantize.zero_point), requantize.clamp_min, requantize.clamp_max);
    const int64_t position = (args.first_pixel + pixel) * prepared.pixel_stride + args.first_channel;
    _mm512_mask_storeu_epi8(static_cast<int8_t*>(prepared.output) + position, mask, codes);
  }

  void Any() const {
    for (int64_t p = 0; p < args.pixels; ++p) {
      __m512i total[4];
      Init(total);
      const auto* weights = static_cast<const int8_t*>(args.weights);
      for (int64_t tap = 0; tap < args.taps; tap += kKBlock, weights += kInt8BlockBytes) {
        __m512i x[kKBlock];
        KLB_UNROLL for (int i = 0; i < kKBlock; ++i)
          x[i] = Load(tap + i < args.taps ? tap + i : tap, p);  // a missing tap has weight zero: any row will do
        FourTaps(x).AddTo(total, weights);
      }
      Finish(total, p);
    }
  }

  // With stride 1 two of three columns stay, with stride 2 one does; pointers say so, whatever the layer's shape is.
  void ThreeByThree() const {
    FourTaps left, middle, right;
    for (int64_t p = 0; p < args.pixels; ++p) {
      if (p > 0 && Same(2, 1, p) && Same(1, 0, p)) {
        left = middle;
        middle = right;
      } else {
        left = p > 0 && Same(2, 0, p) ? right : Column(0, p);
        middle = Column(1, p);
      }
      right = Column(2, p);
      __m512i total[4];
      Init(total);
      left.AddTo(total, layer.columns[0]);
      middle.AddTo(total, layer.columns[1]);
      right.AddTo(total, layer.columns[2]);
      Finish(total, p);
    }
  }
};

// False where the epilogue needs more than one vector form: a residual, factors without one.
inline bool RunDepthwiseInRegisters(const BlockArgs& args) {
  if (args.epilogue->fast != PreparedEpilogue::Fast::kFixed || args.epilogue->has_residual) return false;
  const InterleavedLayer layer(args);
  const DepthwiseRun run(args, layer);
  args.taps == 9 ? run.ThreeByThree() : run.Any();
  return true;
}

}  // namespace
}  // namespace keras_lowbit
