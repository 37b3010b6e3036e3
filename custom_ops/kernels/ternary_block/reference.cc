// The contract, line by line.
#include "kernels/ternary_block/ternary_block.h"

namespace keras_lowbit {
namespace {

int Code(const uint8_t* group, int channel, int i) {
  return (group[4 * (channel % 16) + i] >> (2 * (channel / 16))) & 3;
}

// Adds scale * sum over one tap of one cluster to 64 totals.
void AddTap(const uint8_t* codes, int64_t groups, const int8_t* x, const int8_t* scales, uint32_t* total) {
  for (int64_t g = 0; g < groups; ++g) {
    for (int c = 0; c < 64; ++c) {
      const int scale = scales == nullptr ? 1 : scales[c];
      for (int i = 0; i < 4; ++i) total[c] += scale * x[4 * g + i] * (Code(codes + 64 * g, c, i) - 1);
    }
  }
}

}  // namespace

void TernaryBlockReference(const BlockArgs& args, const ClusterArgs& clusters) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    uint32_t total[64];
    for (int c = 0; c < 64; ++c) total[c] = args.constants->init[c];
    const auto* codes = static_cast<const uint8_t*>(args.weights);
    const int8_t* scales = clusters.scales;
    for (int64_t cluster = 0; cluster < clusters.clusters; ++cluster) {
      const int64_t groups = cluster + 1 == clusters.clusters ? clusters.last_groups : clusters.cluster_groups;
      for (int64_t tap = 0; tap < args.taps; ++tap) {
        const int8_t* x =
            args.rows[tap * args.tap_stride + p] + args.channel_offset + 4 * cluster * clusters.cluster_groups;
        AddTap(codes, groups, x, scales, total);
        codes += 64 * groups;
        if (scales != nullptr && (clusters.scales_per_tap || tap + 1 == args.taps)) scales += 64;
      }
    }
    args.output->finish(*args.output, reinterpret_cast<const int32_t*>(total), args.first_pixel + p, args.first_channel,
                        1, args.channels);
  }
}

void UnpackTernaryReference(const UnpackArgs& args) {
  for (int64_t g = 0; g < args.groups; ++g) {
    for (int c = 0; c < 64; ++c) {
      const int scale = args.scales == nullptr ? 1 : args.scales[c];
      for (int i = 0; i < 4; ++i) {
        args.weights[256 * g + 4 * c + i] = static_cast<int8_t>(scale * (Code(args.codes + 64 * g, c, i) - 1));
      }
    }
  }
}

}  // namespace keras_lowbit
