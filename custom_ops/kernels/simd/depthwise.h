// The depthwise loop that all vector targets share. The bytes of four taps are interleaved channel by channel, and then
// one dot product per channel adds all four: the same instruction as in a convolution.
#pragma once

#include "kernels/depthwise/depthwise.h"
#include "kernels/simd/generic.h"

namespace keras_lowbit {
namespace {

// The V::kBytes channels from `first` on, of which at least one is real. totals: of the block.
template <class V>
void DepthwiseChunk(const BlockArgs& args, int64_t p, int64_t first, int32_t* totals) {
  typename V::Totals total[4];
  KLB_UNROLL for (int q = 0; q < 4; ++q)
    total[q] = V::Zero();
  const auto* weights = static_cast<const int8_t*>(args.weights) + kKBlock * first;
  const int64_t count = args.channels - first;
  for (int64_t tap = 0; tap < args.taps; tap += kKBlock, weights += kInt8BlockBytes) {
    typename V::Bytes x[kKBlock], four[4];
    KLB_UNROLL for (int i = 0; i < kKBlock; ++i) {
      const int64_t real = tap + i < args.taps ? tap + i : tap;  // a missing tap has weight zero: any row will do
      x[i] = V::LoadChannels(args.rows[real * args.tap_stride + p] + args.channel_offset + first, count);
    }
    V::Interleave(x, four);
    KLB_UNROLL for (int q = 0; q < 4; ++q) {
      total[q] = V::Dot(total[q], V::FromBytes(four[q]), V::Load(weights + q * V::kBytes));
    }
  }
  V::StoreInterleaved(totals + first, args.constants->init + first, total);
}

template <class V>
void RunDepthwise(const BlockArgs& args) {
  alignas(kAlignment) int32_t totals[kBlockChannels] = {};
  for (int64_t p = 0; p < args.pixels; ++p) {
    for (int64_t first = 0; first < args.channels; first += V::kBytes) DepthwiseChunk<V>(args, p, first, totals);
    ApplyEpilogueToTile<V>(args, totals, p, 1);
  }
}

}  // namespace
}  // namespace keras_lowbit
