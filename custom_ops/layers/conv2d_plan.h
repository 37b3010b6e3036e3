// How a convolution runs, before it meets its data: kernels, the image that they read, and the grid of tasks.
#pragma once

#include <cstdint>

#include "core/packing.h"
#include "core/shapes.h"
#include "kernels/int8_block/int8_block.h"
#include "kernels/isa.h"
#include "kernels/ternary_block/ternary_block.h"
#include "layers/padded_image.h"

namespace keras_lowbit {

enum class Path { kInt8, kTernaryUnpacked, kTernaryInRegisters };

struct KernelChoice {
  Path path = Path::kInt8;
  void (*run)(const BlockArgs& args) = nullptr;  // on int8 weights, as they came or unpacked
  TernaryBlockKernel ternary = {};
  int32_t activation_offset = 0;
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
  KernelChoice kernel;
  ImagePlan image;
  Grid grid;
};

// shared: several threads take part.
ConvPlan PlanConv(Isa isa, const ConvShape& shape, const PackedWeights& weights, bool shared);

}  // namespace keras_lowbit
