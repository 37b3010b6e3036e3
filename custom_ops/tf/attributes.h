// Attributes of an op, read once when it is made, and small checks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/shapes.h"
#include "core/status.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace keras_lowbit {

using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;

// Outputs beyond this many elements are refused: no layer is so large, and the allocator may promise what it lacks.
constexpr int64_t kMaxOutput = std::numeric_limits<int32_t>::max();

inline absl::Status ToTensorFlow(const Status& status) {
  return status.ok() ? absl::OkStatus() : absl::InvalidArgumentError(status.message());
}

inline absl::Status ReadInt32(OpKernelConstruction* context, const char* name, int32_t* value) {
  int64_t wide = 0;
  TF_RETURN_IF_ERROR(context->GetAttr(name, &wide));
  *value = static_cast<int32_t>(wide);
  if (*value == wide) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", wide, "; expected an int32"));
}

inline absl::Status ReadNumbers(OpKernelConstruction* context, const char* name, size_t count,
                                std::vector<int64_t>* numbers) {
  TF_RETURN_IF_ERROR(context->GetAttr(name, numbers));
  if (numbers->size() == count) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " has ", numbers->size(), " numbers; expected ", count));
}

// Strides, dilations and padding, read once.
class Window {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    std::string padding;
    TF_RETURN_IF_ERROR(context->GetAttr("padding", &padding));
    same_ = padding == "SAME";
    TF_RETURN_IF_ERROR(ReadNumbers(context, "strides", 2, &strides_));
    TF_RETURN_IF_ERROR(ReadNumbers(context, "dilations", 2, &dilations_));
    TF_RETURN_IF_ERROR(ReadNumbers(context, "explicit_paddings", padding == "EXPLICIT" ? 4 : 0, &pads_));
    pads_.resize(4);
    return absl::OkStatus();
  }

  // The shape of a layer on `input` [N, H, W, C] with a window of rows x columns.
  ConvShape Shape(const Tensor& input, int64_t rows, int64_t columns, int64_t out_channels, int64_t groups) const {
    ConvShape shape;
    shape.batch = input.dim_size(0), shape.in_height = input.dim_size(1), shape.in_width = input.dim_size(2);
    shape.in_channels = input.dim_size(3), shape.out_channels = out_channels;
    shape.kernel_height = rows, shape.kernel_width = columns;
    shape.stride_height = strides_[0], shape.stride_width = strides_[1];
    shape.dilation_height = dilations_[0], shape.dilation_width = dilations_[1];
    shape.pad_top = pads_[0], shape.pad_bottom = pads_[1], shape.pad_left = pads_[2], shape.pad_right = pads_[3];
    shape.groups = groups;
    const bool sane = rows > 0 && columns > 0 && strides_[0] > 0 && strides_[1] > 0 && dilations_[0] > 0 &&
                      dilations_[1] > 0 && std::max({rows, columns, strides_[0], strides_[1]}) < kMaxOutput &&
                      std::max(dilations_[0], dilations_[1]) < kMaxOutput;
    if (same_ && sane) SetSamePadding(&shape);
    return shape;
  }

 private:
  bool same_ = false;
  std::vector<int64_t> strides_, dilations_, pads_;
};

inline absl::Status CheckRank4(const Tensor& tensor, const char* name) {
  if (tensor.dims() == 4) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " has shape ", tensor.shape().DebugString(), "; expected rank 4"));
}

inline absl::Status CheckOutputSize(const ConvShape& shape) {
  // A kernel may copy the image with its padding.
  const int64_t rows = shape.in_height + shape.pad_top + shape.pad_bottom;
  const int64_t columns = shape.in_width + shape.pad_left + shape.pad_right;
  const int64_t most = kMaxOutput / std::max<int64_t>(1, shape.in_channels);
  if (rows > most || columns > most || rows * columns > most) {
    return absl::InvalidArgumentError(absl::StrCat("an image with its padding has ", rows, " x ", columns,
                                                   " pixels of ", shape.in_channels, " channels; expected at most ",
                                                   kMaxOutput, " values"));
  }
  if (shape.output_size() <= kMaxOutput) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the output would have ", shape.output_size(), " elements; expected at most ", kMaxOutput));
}

}  // namespace keras_lowbit
