// What a kernel of a convolution or dense layer is handed, and where its weights and pixels are. Plain numbers and device
// pointers; cuda/plan.h fills them.
#pragma once

#include <cstdint>

#include "core/blocks.h"
#include "core/epilogue.h"
#include "core/host_device.h"

namespace keras_lowbit::cuda {

// How far from one channel's value to the next: 0 for an array of one value that all channels share.
struct ChannelSteps {
  int32_t multiplier = 1, shift = 1, factor = 1, float_scale = 1;
};

struct OutputArgs {
  Epilogue epilogue;
  ChannelSteps steps;
  const int32_t* sums = nullptr;  // of packed weights, padded group by group; null: the zero point is off already
  int32_t input_zero_point = 0;
  int32_t out_channels = 0;
  int32_t group_outputs = 0, group_sums = 0;  // channels of a group, and what `sums` holds for one
  void* output = nullptr;
};

struct ConvArgs {
  int32_t in_height = 0, in_width = 0, in_channels = 0, out_height = 0, out_width = 0;
  int32_t kernel_width = 0, stride_height = 0, stride_width = 0, dilation_height = 0, dilation_width = 0;
  int32_t pad_top = 0, pad_left = 0, taps = 0;
  int32_t group_inputs = 0, oc_blocks = 0;  // of one group
  int32_t clusters = 0, cluster_channels = 0, cluster_k_blocks = 0, last_k_blocks = 0, k_blocks = 0;
  int32_t pixels = 0;
  int32_t slices = 1, slice_k_blocks = 0;  // the sum over k in so many parts, each into `partials`
  bool scales_per_tap = false;
  bool whole_vectors = false;  // each 4 k-blocks from a multiple of 4 on are 16 aligned bytes of one pixel
  const int8_t* input = nullptr;
  const uint8_t* codes = nullptr;
  const int8_t* scales = nullptr;
  int32_t* partials = nullptr;  // [slices][pixels][out_channels]
  OutputArgs out;
};

// Where a k-block's activations are: the tap's offset in the image and the first of its channels in the group, of which
// `channels` (1..4) exist. `factor`: which row of 64 scales it has.
struct KPlace {
  int32_t row, column, channel, channels, factor;
};

// Of k-block `inside` of one tap of a cluster, the tap at the window's corner.
KLB_HOST_DEVICE inline KPlace PlaceInCluster(const ConvArgs& a, int32_t cluster, int32_t inside) {
  const int32_t first = cluster * a.cluster_channels, channel = first + inside * kKBlock;
  const int32_t end = first + a.cluster_channels < a.group_inputs ? first + a.cluster_channels : a.group_inputs;
  return {0, 0, channel, end - channel < kKBlock ? end - channel : kKBlock, cluster};
}

KLB_HOST_DEVICE inline KPlace PlaceOfK(const ConvArgs& a, int32_t k_block) {
  const int32_t span = a.taps * a.cluster_k_blocks, cluster = k_block / span, rest = k_block - cluster * span;
  const int32_t of_tap = cluster + 1 == a.clusters ? a.last_k_blocks : a.cluster_k_blocks;
  const int32_t tap = rest / of_tap, row = tap / a.kernel_width, column = tap - row * a.kernel_width;
  KPlace place = PlaceInCluster(a, cluster, rest - tap * of_tap);
  place.row = row * a.dilation_height, place.column = column * a.dilation_width;
  if (a.scales_per_tap) place.factor = cluster * a.taps + tap;
  return place;
}

// The same of a layer of one tap, with fewer divisions.
KLB_HOST_DEVICE inline KPlace PlaceOfRowK(const ConvArgs& a, int32_t k_block) {
  const int32_t cluster = a.clusters == 1 ? 0 : k_block / a.cluster_k_blocks;
  return PlaceInCluster(a, cluster, k_block - cluster * a.cluster_k_blocks);
}

KLB_HOST_DEVICE inline int32_t FactorRows(const ConvArgs& a) {
  return a.scales_per_tap ? a.clusters * a.taps : a.clusters;
}

// Where the window of an output pixel begins: image (as its first row among all rows), row and column, which may lie
// outside. A pixel beyond the last begins so far outside that no tap meets the image.
struct PixelPlace {
  int32_t image_row, row, column;
};
constexpr int32_t kNowhere = -(1 << 30);

KLB_HOST_DEVICE inline PixelPlace PlaceOfPixel(const ConvArgs& a, int32_t pixel) {
  if (pixel >= a.pixels) return {0, kNowhere, kNowhere};
  const int32_t line = pixel / a.out_width, x = pixel - line * a.out_width;
  const int32_t image = line / a.out_height, y = line - image * a.out_height;
  return {image * a.in_height, y * a.stride_height - a.pad_top, x * a.stride_width - a.pad_left};
}

// The address of a k-block of a pixel, the group's channels beginning at `group_input`; null in the padding.
KLB_HOST_DEVICE inline const int8_t* AddressOf(const ConvArgs& a, const PixelPlace& pixel, const KPlace& k,
                                               int32_t group_input) {
  const int32_t row = pixel.row + k.row, column = pixel.column + k.column;
  const bool inside = row >= 0 && row < a.in_height && column >= 0 && column < a.in_width;
  if (!inside) return nullptr;
  const int64_t position = static_cast<int64_t>(pixel.image_row + row) * a.in_width + column;
  return a.input + position * a.in_channels + group_input + k.channel;
}

}  // namespace keras_lowbit::cuda
