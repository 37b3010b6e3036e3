// Packed weights: two layouts, in blocks of 64 output channels by one k-block, 4 consecutive k.
//
// kTernary2Bit. Code c in {0, 1, 2} means t = c - 1 in {-1, 0, +1}; c = 3 is never written (kernels read it as
// some finite weight). One block is 64 bytes: byte b, bits 2j and 2j+1 (j = 0..3) belong to output channel
// `64 * block + 16 * j + b / 4` and `k = 4 * k_block + b % 4`. Array: uint8 [oc_blocks][k_blocks][64].
//
// kInt8. One block is 256 bytes: byte `64 * j + b` is output channel `64 * block + 16 * j + b / 4`, `k = 4 *
// k_block + b % 4`; the same order, one byte a weight. Array: int8 [oc_blocks][k_blocks][256].
//
// Order of k: (cluster, kernel row, kernel column, channel inside the cluster), the channels of each cluster
// padded up to a multiple of 4. A cluster is `cluster_size` consecutive input channels over all taps; the last
// one may be shorter; cluster_size >= the channels of a group means one cluster. kInt8 always has one cluster
// (cluster scales are folded into the weights: scale * t fits int8 exactly). Padding entries, channels beyond the
// last and k beyond a cluster's, hold weight zero: c = 1, or 0 in kInt8.
//
// Scales (optional): int8 0..127 [oc_blocks][clusters][64], or [oc_blocks][clusters][taps][64] where
// scales_per_tap; one factor of each output channel and cluster, 0 in padding channels. Blocks of 64 channels
// stand together because a kernel reads the 64 scales of a block at once.
//
// Sums: int32 [oc_blocks * 64], for each output channel the sum of all its weights, scale * t included. Kernels
// subtract `zero_point * sum` once instead of subtracting the zero point from every activation.
//
// Groups of a convolution: each group's array (out_channels / groups channels) is packed by itself and the groups
// follow one another, codes, scales and sums alike.
#pragma once

#include <cstdint>

#include "core/blocks.h"
#include "core/shapes.h"
#include "core/status.h"

namespace keras_lowbit {

enum class WeightLayout : int32_t { kTernary2Bit = 0, kInt8 = 1 };

// How many of everything one packed kernel holds. `WeightSizesOf` fills it; all fields are per call, groups
// included where the name says total.
struct WeightSizes {
  int64_t oc_blocks = 0;         // blocks of 64 output channels, of one group
  int64_t clusters = 0;          // of one group
  int64_t cluster_k_blocks = 0;  // k-blocks of one tap of a full cluster: ceil(cluster_size / 4)
  int64_t last_k_blocks = 0;     // the same of the last cluster
  int64_t tap_k_blocks = 0;      // k-blocks of one tap over all clusters
  int64_t k_blocks = 0;          // taps * tap_k_blocks
  int64_t codes_bytes_total = 0;
  int64_t scales_bytes_total = 0;
  int64_t sums_count_total = 0;
};

// Borrowed weights; the caller keeps the arrays alive for the call. 64-byte alignment of `codes` helps, none is
// needed.
struct PackedWeights {
  WeightLayout layout = WeightLayout::kTernary2Bit;
  int64_t cluster_size = 0;  // input channels of one cluster; 0: no clusters
  bool scales_per_tap = false;
  const void* codes = nullptr;
  int64_t codes_bytes = 0;
  const int8_t* scales = nullptr;  // null: every factor is 1
  int64_t scales_bytes = 0;
  const int32_t* sums = nullptr;
  int64_t sums_count = 0;
};

// What packed weights of this shape measure. Dense layers: WeightSizesOf(AsConv(shape), weights).
WeightSizes WeightSizesOf(const ConvShape& shape, const PackedWeights& weights);

// The arrays are there and have the sizes above; errors name both numbers.
Status CheckWeights(const ConvShape& shape, const PackedWeights& weights);

// Packs `kernel` int8 [kernel_height, kernel_width, in_channels / groups, out_channels] (HWIO; dense: [in, out])
// with values -1, 0, 1 (kTernary2Bit) or any (kInt8). `layout`, `cluster_size`, `scales_per_tap`, `scales` are read
// from `weights`; codes and sums go to the caller's buffers of the sizes above. An error for a value that does not fit.
Status PackWeights(const ConvShape& shape, const PackedWeights& weights, const int8_t* kernel, void* codes,
                   int32_t* sums);

// The inverse: HWIO kernel with the scales multiplied in, as int8 (scale * t).
Status UnpackWeights(const ConvShape& shape, const PackedWeights& weights, int8_t* kernel);

}  // namespace keras_lowbit
