#include "core/shapes.h"

#include <algorithm>
#include <limits>
#include <string>

namespace keras_lowbit {
namespace {

// Sizes and their products stay far below the limit of int64, so that nothing derived from them can overflow.
constexpr int64_t kMaxElements = int64_t{1} << 40;
constexpr int64_t kMaxSide = int64_t{1} << 30;

int64_t OutSize(int64_t in, int64_t pads, int64_t kernel, int64_t stride, int64_t dilation) {
  const int64_t room = in + pads - (kernel - 1) * dilation - 1;
  return room < 0 || in == 0 ? 0 : room / stride + 1;
}

Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high) {
  if (low <= value && value <= high) return Status();
  return Status::Error(std::string(name) + " is " + std::to_string(value) + "; expected " + std::to_string(low) +
                       " to " + std::to_string(high) + ": check the shapes and attributes of the layer");
}

// The product of all sizes, or -1 beyond kMaxElements.
int64_t Product(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) return -1;
    if (product > kMaxElements) return -1;
  }
  return product;
}

Status CheckProduct(const char* name, std::initializer_list<int64_t> sizes) {
  if (Product(sizes) >= 0) return Status();
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return Status::Error(std::string(name) + " of " + text +
                       " elements is too large; expected at most 2**40: split the layer");
}

Status CheckSizes(const ConvShape& s) {
  const struct {
    const char* name;
    int64_t value, low;
  } sizes[] = {{"batch", s.batch, 0},
               {"in_height", s.in_height, 0},
               {"in_width", s.in_width, 0},
               {"in_channels", s.in_channels, 1},
               {"out_channels", s.out_channels, 1},
               {"kernel_height", s.kernel_height, 1},
               {"kernel_width", s.kernel_width, 1},
               {"stride_height", s.stride_height, 1},
               {"stride_width", s.stride_width, 1},
               {"dilation_height", s.dilation_height, 1},
               {"dilation_width", s.dilation_width, 1},
               {"pad_top", s.pad_top, 0},
               {"pad_bottom", s.pad_bottom, 0},
               {"pad_left", s.pad_left, 0},
               {"pad_right", s.pad_right, 0},
               {"groups", s.groups, 1}};
  for (const auto& size : sizes) {
    const bool fits = size.low <= size.value && size.value <= kMaxSide;
    if (!fits) return CheckRange(size.name, size.value, size.low, kMaxSide);
  }
  return Status();
}

}  // namespace

int64_t ConvShape::out_height() const {
  return OutSize(in_height, pad_top + pad_bottom, kernel_height, stride_height, dilation_height);
}

int64_t ConvShape::out_width() const {
  return OutSize(in_width, pad_left + pad_right, kernel_width, stride_width, dilation_width);
}

ConvShape AsConv(const DenseShape& shape) {
  ConvShape conv;
  conv.in_width = shape.rows;
  conv.in_channels = shape.in_features;
  conv.out_channels = shape.out_features;
  return conv;
}

void SetSamePadding(ConvShape* s) {
  const auto total = [](int64_t in, int64_t kernel, int64_t stride, int64_t dilation) {
    const int64_t out = (in + stride - 1) / stride;
    return std::max<int64_t>((out - 1) * stride + (kernel - 1) * dilation + 1 - in, 0);
  };
  const int64_t rows = total(s->in_height, s->kernel_height, s->stride_height, s->dilation_height);
  const int64_t columns = total(s->in_width, s->kernel_width, s->stride_width, s->dilation_width);
  s->pad_top = rows / 2;
  s->pad_bottom = rows - s->pad_top;
  s->pad_left = columns / 2;
  s->pad_right = columns - s->pad_left;
}

Status CheckConv(const ConvShape& s) {
  KLB_RETURN_IF_ERROR(CheckSizes(s));
  if (s.in_channels % s.groups != 0 || s.out_channels % s.groups != 0) {
    return Status::Error(std::to_string(s.in_channels) + " input and " + std::to_string(s.out_channels) +
                         " output channels; expected multiples of groups = " + std::to_string(s.groups) +
                         ": check the attribute groups");
  }
  KLB_RETURN_IF_ERROR(CheckProduct("an input", {s.batch, s.in_height, s.in_width, s.in_channels}));
  KLB_RETURN_IF_ERROR(CheckProduct("a kernel", {s.kernel_height, s.kernel_width, s.in_channels, s.out_channels}));
  return CheckProduct("an output", {s.batch, s.out_height(), s.out_width(), s.out_channels});
}

Status CheckDepthwise(const ConvShape& s) {
  KLB_RETURN_IF_ERROR(CheckSizes(s));
  if (s.groups != 1 || s.out_channels % s.in_channels != 0) {
    return Status::Error("a depthwise layer with groups = " + std::to_string(s.groups) + ", " +
                         std::to_string(s.in_channels) + " input and " + std::to_string(s.out_channels) +
                         " output channels; expected groups = 1 and a multiple of the input channels");
  }
  KLB_RETURN_IF_ERROR(CheckProduct("an input", {s.batch, s.in_height, s.in_width, s.in_channels}));
  KLB_RETURN_IF_ERROR(CheckProduct("a kernel", {s.kernel_height, s.kernel_width, s.out_channels}));
  return CheckProduct("an output", {s.batch, s.out_height(), s.out_width(), s.out_channels});
}

int64_t MaxAbsAccumulator(const ConvShape& s, int64_t max_abs_weight) {
  const int64_t most = std::numeric_limits<int64_t>::max();
  const int64_t depth = s.taps() * (s.in_channels / s.groups);
  return depth > most / (255 * std::max<int64_t>(max_abs_weight, 1)) ? most : 255 * max_abs_weight * depth;
}

}  // namespace keras_lowbit
