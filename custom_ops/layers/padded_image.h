// A copy of an image for kernels that read four channels at once.
#pragma once

#include <cstdint>

#include "core/parallel.h"
#include "core/shapes.h"

namespace keras_lowbit {

// One group's channels of every pixel, cluster by cluster, each cluster padded to a multiple of 4; the image gets
// the borders of `shape` with every byte at the zero point. Pixels of a row then stand side by side, so that a whole
// kernel row is one stretch of memory: a first layer of 3 channels has 7 taps of 7 k-blocks instead of 49 of one.
struct PaddedImage {
  ConvShape shape;       // of the convolution
  int64_t channels = 0;  // of one group
  int64_t cluster_channels = 0;
  int64_t cluster_bytes = 0, bytes = 0;  // of a cluster and of a pixel in the copy, multiples of 4

  int64_t height() const { return shape.in_height + shape.pad_top + shape.pad_bottom; }
  int64_t width() const { return shape.in_width + shape.pad_left + shape.pad_right; }
  int64_t size() const { return shape.batch * height() * width() * bytes; }
};

// The channels of one pixel. Bytes between them are not written.
void CopyPixel(const PaddedImage& image, const int8_t* input, int8_t* copy);

// input: the group's first channel of the first pixel; pixels are shape.in_channels apart.
void CopyPadded(const PaddedImage& image, const int8_t* input, int32_t zero_point, int8_t* copy,
                const ParallelFor& parallel);

}  // namespace keras_lowbit
