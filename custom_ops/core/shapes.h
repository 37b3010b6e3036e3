// Sizes of a layer, the numbers derived from them, and the checks that make them safe to use.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace keras_lowbit {

// Two-dimensional convolution, NHWC in and out. Padding is explicit and holds the input's zero point, so a
// padded tap adds nothing to `sum (x - zero_point) * w`.
struct ConvShape {
  int64_t batch = 1, in_height = 1, in_width = 1, in_channels = 1;
  int64_t out_channels = 1;  // depthwise: in_channels * depth_multiplier
  int64_t kernel_height = 1, kernel_width = 1;
  int64_t stride_height = 1, stride_width = 1;
  int64_t dilation_height = 1, dilation_width = 1;
  int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  int64_t groups = 1;  // of a convolution; a depthwise layer leaves it at 1

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t out_height() const;  // floor((in + pads - (kernel - 1) * dilation - 1) / stride) + 1, 0 where empty
  int64_t out_width() const;
  int64_t out_pixels() const { return batch * out_height() * out_width(); }
  int64_t input_size() const { return batch * in_height * in_width * in_channels; }
  int64_t output_size() const { return out_pixels() * out_channels; }
};

// Rows of features: output[row][out] = sum over in. A convolution of 1x1 over `rows` pixels.
struct DenseShape {
  int64_t rows = 1, in_features = 1, out_features = 1;
};

ConvShape AsConv(const DenseShape& shape);

// Pads as TensorFlow and LiteRT do for SAME: the smaller half comes first.
void SetSamePadding(ConvShape* shape);

// Every size is positive (batch, height and width may be 0), products fit int64, channels divide by groups.
Status CheckConv(const ConvShape& shape);
Status CheckDepthwise(const ConvShape& shape);

// Largest |sum (x - zero_point) * w| of int8 codes and weights up to `max_abs_weight` (1 for ternary without
// cluster scales, 127 otherwise). The kernels add modulo 2**32, so the result is exact while this bound plus
// |bias| stays below 2**31, and equals the wrapped sum of the reference beyond.
int64_t MaxAbsAccumulator(const ConvShape& shape, int64_t max_abs_weight);

}  // namespace keras_lowbit
