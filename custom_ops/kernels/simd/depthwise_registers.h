// Depthwise layers whose totals never leave the registers, for machines that pack sums to codes within 128-bit lanes.
//
// Interleaving the bytes of four taps leaves the channels in an order of its own (DepthwiseKernel::Slot), and packing
// undoes it. So the constants are put into that order once a call, and no pixel's totals are transposed. Of a window of
// 3x3 the three rows of a column are interleaved, and a fourth byte that meets a weight of zero: the column serves up to
// three output pixels, as the right one, the middle one and the left one.
//
// Beyond generic.h the traits V have
//   Requantize, RequantizeFp32(block, totals, first channel)   of a vector
//   PackLanes(four vectors, zero point), Clamp, StoreChannels   codes, in order where the sums are interleaved
#pragma once

#include <cstring>

#include "kernels/depthwise/depthwise.h"
#include "kernels/simd/generic.h"

namespace keras_lowbit {
namespace {

// What a call brings into the order of interleaved channels.
template <class V>
struct InterleavedLayer {
  static constexpr int kChunks = kBlockChannels / V::kBytes, kLanes = V::kBytes / 16;

  explicit InterleavedLayer(const BlockArgs& args) {
    const ChannelBlock& given = *args.constants;
    const DepthwiseKernel order = {nullptr, 0, kLanes};
    for (int c = 0; c < kBlockChannels; c += 4) {
      const int64_t slot = order.Slot(c);
      std::memcpy(block.init + slot, given.init + c, 16);
      std::memcpy(block.left + slot, given.left + c, 16);
      std::memcpy(block.multiplier + slot, given.multiplier + c, 16);
      std::memcpy(block.multiplier_odd + slot, given.multiplier_odd + c, 16);
      std::memcpy(block.shift + slot, given.shift + c, 16);
      std::memcpy(block.nudge + slot, given.nudge + c, 16);
      std::memcpy(block.fp32_factor + slot, given.fp32_factor + c, 16);
      std::memcpy(block.fp32_nudge + slot, given.fp32_nudge + c, 16);
    }
    if (args.taps == 9) PackColumns(static_cast<const uint8_t*>(args.weights));
  }

  // Taps 0 to 8 of a channel, four a word, as the columns (0, 3, 6), (1, 4, 7), (2, 5, 8).
  void PackColumns(const uint8_t* weights) {
    uint32_t taps[3][kBlockChannels], packed[3][kBlockChannels];
    std::memcpy(taps, weights, sizeof taps);
    for (int c = 0; c < kBlockChannels; ++c) {
      const uint32_t a = taps[0][c], b = taps[1][c], last = taps[2][c];
      packed[0][c] = (a & 255) | (a >> 24) << 8 | (b >> 16 & 255) << 16;
      packed[1][c] = (a >> 8 & 255) | (b & 255) << 8 | (b >> 24) << 16;
      packed[2][c] = (a >> 16 & 255) | (b >> 8 & 255) << 8 | (last & 255) << 16;
    }
    for (int i = 0; i < kChunks * 12; ++i) {
      const int chunk = i / 12, column = i / 4 % 3, q = i % 4;
      const uint32_t* from = packed[column] + chunk * V::kBytes + q * V::kChannels;
      columns[chunk][column][q] = V::Load(reinterpret_cast<const int8_t*>(from));
    }
  }

  ChannelBlock block;
  typename V::Weights columns[kChunks][3][4];
};

// Four taps, or three and whatever meets a weight of zero, of the channels of a chunk.
template <class V>
struct FourTaps {
  typename V::Activations four[4];

  FourTaps() = default;
  explicit FourTaps(const typename V::Bytes* x) {
    typename V::Bytes bytes[4];
    V::Interleave(x, bytes);
    KLB_UNROLL for (int q = 0; q < 4; ++q)
      four[q] = V::FromBytes(bytes[q]);
  }

  __attribute__((always_inline)) void AddTo(typename V::Totals* total, const typename V::Weights* weights) const {
    KLB_UNROLL for (int q = 0; q < 4; ++q)
      total[q] = V::Dot(total[q], four[q], weights[q]);
  }
};

// The V::kBytes channels from kFirst on, `count` or all of them real.
template <class V, int kFirst>
struct DepthwiseChunkRun {
  const BlockArgs& args;
  const InterleavedLayer<V>& layer;
  const int64_t count;

  typename V::Bytes Load(int64_t tap, int64_t pixel) const {
    return V::LoadChannels(args.rows[tap * args.tap_stride + pixel] + args.channel_offset + kFirst, count);
  }

  FourTaps<V> Column(int64_t column, int64_t pixel) const {
    const typename V::Bytes last = Load(column + 6, pixel);
    const typename V::Bytes x[4] = {Load(column, pixel), Load(column + 3, pixel), last, last};
    return FourTaps<V>(x);
  }

  // Whether column `from` of the pixel before stands where column `to` of this one does.
  bool Same(int64_t from, int64_t to, int64_t pixel) const {
    const int8_t* const* now = args.rows + to * args.tap_stride + pixel;
    const int8_t* const* before = args.rows + from * args.tap_stride + pixel - 1;
    const int64_t row = 3 * args.tap_stride;
    return now[0] == before[0] && now[row] == before[row] && now[2 * row] == before[2 * row];
  }

  void Init(typename V::Totals* total) const {
    KLB_UNROLL for (int q = 0; q < 4; ++q)
      total[q] = V::Init(layer.block.init + kFirst + q * V::kChannels);
  }

  __attribute__((always_inline)) void Finish(const typename V::Totals* total, int64_t pixel) const {
    const PreparedEpilogue& prepared = *args.epilogue;
    const Requantize& requantize = prepared.definition->requantize;
    typename V::Totals y[4];
    KLB_UNROLL for (int q = 0; q < 4; ++q) {
      const int channel = kFirst + q * V::kChannels;
      y[q] = prepared.has_fp32 ? V::RequantizeFp32(layer.block, total[q], channel)
                               : V::Requantize(layer.block, total[q], channel);
    }
    const typename V::Bytes codes =
        V::Clamp(V::PackLanes(y, requantize.zero_point), requantize.clamp_min, requantize.clamp_max);
    const int64_t position = (args.first_pixel + pixel) * prepared.pixel_stride + args.first_channel + kFirst;
    V::StoreChannels(static_cast<int8_t*>(prepared.output) + position, codes, count);
  }

  void Any() const {
    for (int64_t p = 0; p < args.pixels; ++p) {
      typename V::Totals total[4];
      Init(total);
      const auto* weights = static_cast<const int8_t*>(args.weights) + kKBlock * kFirst;
      for (int64_t tap = 0; tap < args.taps; tap += kKBlock, weights += kInt8BlockBytes) {
        typename V::Bytes x[kKBlock];
        KLB_UNROLL for (int i = 0; i < kKBlock; ++i)
          x[i] = Load(tap + i < args.taps ? tap + i : tap, p);  // a missing tap has weight zero: any row will do
        typename V::Weights four[4];
        KLB_UNROLL for (int q = 0; q < 4; ++q)
          four[q] = V::Load(weights + q * V::kBytes);
        FourTaps<V>(x).AddTo(total, four);
      }
      Finish(total, p);
    }
  }

  // With stride 1 two of three columns stay, with stride 2 one does; pointers say so, whatever the layer's shape is.
  void ThreeByThree() const {
    const auto& weights = layer.columns[kFirst / V::kBytes];
    FourTaps<V> left, middle, right;
    for (int64_t p = 0; p < args.pixels; ++p) {
      if (p > 0 && Same(2, 1, p) && Same(1, 0, p)) {
        left = middle;
        middle = right;
      } else {
        left = p > 0 && Same(2, 0, p) ? right : Column(0, p);
        middle = Column(1, p);
      }
      right = Column(2, p);
      typename V::Totals total[4];
      Init(total);
      left.AddTo(total, weights[0]);
      middle.AddTo(total, weights[1]);
      right.AddTo(total, weights[2]);
      Finish(total, p);
    }
  }
};

template <class V, int kFirst = 0>
void RunDepthwiseChunks(const BlockArgs& args, const InterleavedLayer<V>& layer) {
  if (args.channels <= kFirst) return;
  const DepthwiseChunkRun<V, kFirst> run = {args, layer, args.channels - kFirst};
  args.taps == 9 ? run.ThreeByThree() : run.Any();
  if constexpr (kFirst + V::kBytes < kBlockChannels) RunDepthwiseChunks<V, kFirst + V::kBytes>(args, layer);
}

// False where the epilogue needs more than one vector form: a residual, factors without one.
template <class V>
bool RunDepthwiseInRegisters(const BlockArgs& args) {
  if (args.epilogue->fast != PreparedEpilogue::Fast::kFixed || args.epilogue->has_residual) return false;
  RunDepthwiseChunks<V>(args, InterleavedLayer<V>(args));
  return true;
}

}  // namespace
}  // namespace keras_lowbit
