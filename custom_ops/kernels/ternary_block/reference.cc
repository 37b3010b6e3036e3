// The contract, line by line.
#include "kernels/ternary_block/ternary_block.h"

namespace keras_lowbit {
namespace {

int Code(const uint8_t* block, int64_t channel, int64_t i) {
  return (block[kKBlock * (channel % kFieldChannels) + i] >> (2 * (channel / kFieldChannels))) & 3;
}

// Adds scale * sum over one tap of one cluster to the totals of a block.
void AddTap(const uint8_t* codes, int64_t k_blocks, const int8_t* x, const int8_t* scales, uint32_t* total) {
  for (int64_t b = 0; b < k_blocks; ++b) {
    for (int64_t c = 0; c < kBlockChannels; ++c) {
      const int scale = scales == nullptr ? 1 : scales[c];
      for (int64_t i = 0; i < kKBlock; ++i)
        total[c] += scale * x[kKBlock * b + i] * (Code(codes + kTernaryBlockBytes * b, c, i) - 1);
    }
  }
}

}  // namespace

void TernaryBlockReference(const BlockArgs& args, const ClusterArgs& clusters) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    uint32_t total[kBlockChannels];
    for (int64_t c = 0; c < kBlockChannels; ++c) total[c] = args.constants->init[c];
    const auto* codes = static_cast<const uint8_t*>(args.weights);
    const int8_t* scales = clusters.scales;
    for (int64_t cluster = 0; cluster < clusters.clusters; ++cluster) {
      const int64_t k_blocks = cluster + 1 == clusters.clusters ? clusters.last_k_blocks : clusters.cluster_k_blocks;
      for (int64_t tap = 0; tap < args.taps; ++tap) {
        const int8_t* x =
            args.rows[tap * args.tap_stride + p] + args.channel_offset + kKBlock * cluster * clusters.cluster_k_blocks;
        AddTap(codes, k_blocks, x, scales, total);
        codes += kTernaryBlockBytes * k_blocks;
        if (scales != nullptr && (clusters.scales_per_tap || tap + 1 == args.taps)) scales += kBlockChannels;
      }
    }
    args.epilogue->apply_scalar(*args.epilogue, reinterpret_cast<const int32_t*>(total), args.first_pixel + p,
                                args.first_channel, 1, args.channels);
  }
}

void UnpackTernaryReference(const UnpackArgs& args) {
  for (int64_t b = 0; b < args.k_blocks; ++b) {
    for (int64_t c = 0; c < kBlockChannels; ++c) {
      const int scale = args.scales == nullptr ? 1 : args.scales[c];
      for (int64_t i = 0; i < kKBlock; ++i) {
        args.weights[kInt8BlockBytes * b + kKBlock * c + i] =
            static_cast<int8_t>(scale * (Code(args.codes + kTernaryBlockBytes * b, c, i) - 1));
      }
    }
  }
}

}  // namespace keras_lowbit
