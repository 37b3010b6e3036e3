// Ternary weights, 2 bits each, decoded in registers: one block of 64 output channels over a few pixels.
//
//   total[p][c] = init[c] + sum over clusters of scale[cluster][c] * sum over the cluster's taps, k-blocks and i of
//                 (rows[t * tap_stride + p][first channel of the cluster + 4 b + i] + activation_offset) * (code - 1)
//
// weights: one block of the kTernary2Bit layout of core/packing.h, in its order (cluster, tap, group). `k_blocks` of
// BlockArgs counts the k-blocks of one tap over all clusters; channels of a pixel are padded cluster by cluster.
// For many pixels unpack the block once and run the int8 block on it: scale * t fits int8 exactly.
#pragma once

#include <cstdint>

#include "kernels/int8_block/int8_block.h"

namespace keras_lowbit {

struct ClusterArgs {
  int64_t clusters = 1, cluster_k_blocks = 0, last_k_blocks = 0;  // k-blocks of one tap of one cluster
  const int8_t* scales = nullptr;  // [clusters][taps or 1][kBlockChannels], null: all ones
  bool scales_per_tap = false;
};

// k-blocks in a row under the same scales, from kTernaryBlockBytes to kInt8BlockBytes each.
struct UnpackArgs {
  const uint8_t* codes = nullptr;  // [k_blocks][kTernaryBlockBytes]
  int64_t k_blocks = 0;
  const int8_t* scales = nullptr;  // [kBlockChannels], null: ones
  int8_t* weights = nullptr;       // [k_blocks][kInt8BlockBytes], the kInt8 layout
};

struct TernaryBlockKernel {
  void (*run)(const BlockArgs& args, const ClusterArgs& clusters);
  void (*unpack)(const UnpackArgs& args);
  // For unpacked weights in {-1, 0, 1}; where the machine has nothing better this is the int8 block itself.
  void (*run_unpacked)(const BlockArgs& args);
  int32_t activation_offset;  // of `run` and `run_unpacked`
  int64_t few_pixels;         // up to so many `run` is faster, beyond them unpacking first
};

TernaryBlockKernel SelectTernaryBlock(Isa isa);

#define KLB_KERNEL(isa, suffix, run_unpacked, offset, few_pixels)                \
  void TernaryBlock##suffix(const BlockArgs& args, const ClusterArgs& clusters); \
  void UnpackTernary##suffix(const UnpackArgs& args);                            \
  void run_unpacked(const BlockArgs& args);
#include "kernels/ternary_block/kernels.inc"
#undef KLB_KERNEL

}  // namespace keras_lowbit
