// How a convolution runs, before it meets its data: kernels, the image that they read, and the grid of tasks.
#pragma once

#include <cstdint>

#include "core/packing.h"
#include "core/shapes.h"
#include "kernels/int8_block/int8_block.h"
#include "kernels/isa.h"
#include "kernels/ternary_block/ternary_block.h"
#include "kernels/tile_block/tile_block.h"
#include "layers/indirection.h"
#include "layers/padded_image.h"
#include "layers/scratch.h"
#include "layers/tile_image.h"

namespace keras_lowbit {

enum class Path { kInt8, kTernaryUnpacked, kTernaryInRegisters, kTiles };

struct KernelChoice {
  Path path = Path::kInt8;
  void (*run)(const BlockArgs& args) = nullptr;  // on int8 weights, as they came or unpacked
  TernaryBlockKernel ternary = {};
  int32_t activation_offset = 0;
  TileBlockKernel tiles = {};
};

// The image as the pointer table sees it: that of the call, or a padded copy of it.
struct ImagePlan {
  bool copies = false;
  PaddedImage copy;
  ConvShape view;        // the convolution on it: where whole kernel rows lie in one stretch, one is one tap
  int64_t k_blocks = 0;  // of one tap of `view`
  ClusterArgs clusters;  // the same cluster by cluster, scales left out
};

// Blocks of output channels x chunks of output pixels; spans are stretches of chunks whose pointer tables are kept.
struct Grid {
  int64_t blocks = 0;
  int64_t chunk_pixels = 0, chunks = 0, span_chunks = 0;
};

// The same for all groups of a convolution; blocks, k-blocks and channels are those of one group.
struct ConvPlan {
  ConvShape shape;
  WeightSizes sizes;
  int64_t channels = 0;
  bool is_ternary = false;
  ClusterArgs clusters;  // of a tap, scales left out
  KernelChoice kernel;
  ImagePlan image;  // but for kTiles
  Grid grid;
  TileImagePlan tiles;  // of kTiles
};

// What one group of one call reads and writes.
struct GroupData {
  ImageView image;  // but for kTiles
  const uint8_t* codes = nullptr;
  const int8_t* scales = nullptr;
  const ChannelBlock* constants = nullptr;
  const PreparedEpilogue* epilogue = nullptr;
  int64_t first_channel = 0;  // of the group, in the output
};

inline const uint8_t* BlockCodes(const ConvPlan& plan, const GroupData& data, int64_t block) {
  return data.codes + block * plan.sizes.k_blocks * (plan.is_ternary ? kTernaryBlockBytes : kInt8BlockBytes);
}

inline const int8_t* BlockScales(const ConvPlan& plan, const GroupData& data, int64_t block) {
  if (data.scales == nullptr) return nullptr;
  const int64_t factors = plan.sizes.clusters * (plan.clusters.scales_per_tap ? plan.shape.taps() : 1);
  return data.scales + block * factors * kBlockChannels;
}

// shared: several threads take part.
ConvPlan PlanConv(Isa isa, const ConvShape& shape, const PackedWeights& weights, bool shared);

}  // namespace keras_lowbit
