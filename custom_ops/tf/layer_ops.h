// Ops of layers with weights: check, borrow the buffers, call the device's kernels. Nothing is computed here but sizes.
// Inputs by number, in the order of ops.cc. What a `Device` has: tf/cpu_device.h, tf_cuda/gpu_device.h.
#pragma once

#include "core/packing.h"
#include "layers/layer_cache.h"
#include "tf/attributes.h"
#include "tf/epilogue.h"

namespace keras_lowbit {

// The packed weights' attributes, read once.
class Weights {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    std::string layout;
    TF_RETURN_IF_ERROR(context->GetAttr("layout", &layout));
    base_.layout = layout == "int8" ? WeightLayout::kInt8 : WeightLayout::kTernary2Bit;
    TF_RETURN_IF_ERROR(context->GetAttr("cluster_size", &base_.cluster_size));
    TF_RETURN_IF_ERROR(context->GetAttr("scales_per_tap", &base_.scales_per_tap));
    TF_RETURN_IF_ERROR(ReadNumbers(context, "kernel_shape", 4, &kernel));
    if (base_.cluster_size >= 0 && *std::min_element(kernel.begin(), kernel.end()) > 0) return absl::OkStatus();
    return absl::InvalidArgumentError("kernel_shape holds a size below 1, or cluster_size is negative");
  }

  // Borrows the arrays of one call; the shape has passed its own check.
  absl::Status Borrow(OpKernelContext* context, const ConvShape& shape, PackedWeights* weights) const {
    const Tensor &codes = context->input(1), &scales = context->input(2), &sums = context->input(3);
    *weights = base_;
    weights->codes = codes.flat<uint8_t>().data(), weights->codes_bytes = codes.NumElements();
    weights->sums = sums.flat<int32_t>().data(), weights->sums_count = sums.NumElements();
    if (scales.NumElements() > 0) {
      weights->scales = scales.flat<int8_t>().data(), weights->scales_bytes = scales.NumElements();
    }
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckWeights(shape, *weights)));
    const bool plain = weights->layout == WeightLayout::kTernary2Bit && weights->scales == nullptr;
    const int64_t bound = MaxAbsAccumulator(shape, plain ? 1 : 127);
    if (bound <= std::numeric_limits<int32_t>::max() || !plain) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("a window can sum to ", bound, ", more than int32 holds: split the layer"));
  }

  std::vector<int64_t> kernel;  // rows, columns, input channels of a group, output channels

 private:
  PackedWeights base_;
};

template <class Device>
class PackedConv2DOp {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(epilogue_.Init(context));
    TF_RETURN_IF_ERROR(window_.Init(context));
    TF_RETURN_IF_ERROR(weights_.Init(context));
    return context->GetAttr("groups", &groups_);
  }

  absl::Status Run(OpKernelContext* context) {
    const Tensor& input = context->input(0);
    TF_RETURN_IF_ERROR(CheckRank4(input, "the input"));
    const std::vector<int64_t>& kernel = weights_.kernel;
    const ConvShape shape = window_.Shape(input, kernel[0], kernel[1], kernel[3], groups_);
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckConv(shape)));
    if (shape.in_channels != kernel[2] * groups_) {
      return absl::InvalidArgumentError(absl::StrCat("the input has ", shape.in_channels, " channels; expected ",
                                                     kernel[2], " for each of ", groups_, " groups"));
    }
    TF_RETURN_IF_ERROR(CheckOutputSize(shape));
    PackedWeights weights;
    TF_RETURN_IF_ERROR(weights_.Borrow(context, shape, &weights));
    const TensorShape out_shape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels});
    BorrowedEpilogue borrowed;
    TF_RETURN_IF_ERROR(epilogue_.Borrow(context, shape.out_channels, out_shape, &borrowed));
    Tensor* output;
    TF_RETURN_IF_ERROR(epilogue_.Allocate(context, out_shape, &output));
    return Device::Conv2D(context, shape, weights, input.flat<int8_t>().data(), epilogue_.input_zero_point, borrowed,
                          output->data(), &cache_);
  }

 private:
  OpEpilogue epilogue_{4, Device::kReadsTensors};
  LayerCache cache_;
  Window window_;
  Weights weights_;
  int64_t groups_ = 1;
};

template <class Device>
class PackedDenseOp {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(epilogue_.Init(context));
    return weights_.Init(context);
  }

  absl::Status Run(OpKernelContext* context) {
    const Tensor& input = context->input(0);
    const std::vector<int64_t>& kernel = weights_.kernel;
    if (input.dims() < 1 || input.dim_size(input.dims() - 1) != kernel[2]) {
      return absl::InvalidArgumentError(
          absl::StrCat("the input has shape ", input.shape().DebugString(), "; expected [..., ", kernel[2], "]"));
    }
    if (kernel[0] != 1 || kernel[1] != 1) {
      return absl::InvalidArgumentError("kernel_shape of a dense layer is [1, 1, inputs, outputs]");
    }
    DenseShape shape;
    shape.rows = input.NumElements() / kernel[2], shape.in_features = kernel[2], shape.out_features = kernel[3];
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckConv(AsConv(shape))));
    TF_RETURN_IF_ERROR(CheckOutputSize(AsConv(shape)));
    PackedWeights weights;
    TF_RETURN_IF_ERROR(weights_.Borrow(context, AsConv(shape), &weights));
    TensorShape out_shape = input.shape();
    out_shape.set_dim(input.dims() - 1, kernel[3]);
    BorrowedEpilogue borrowed;
    TF_RETURN_IF_ERROR(epilogue_.Borrow(context, shape.out_features, out_shape, &borrowed));
    Tensor* output;
    TF_RETURN_IF_ERROR(epilogue_.Allocate(context, out_shape, &output));
    return Device::Conv2D(context, AsConv(shape), weights, input.flat<int8_t>().data(), epilogue_.input_zero_point,
                          borrowed, output->data(), &cache_);
  }

 private:
  OpEpilogue epilogue_{4, Device::kReadsTensors};
  LayerCache cache_;
  Weights weights_;
};

template <class Device>
class DepthwiseConv2DOp {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(epilogue_.Init(context));
    return window_.Init(context);
  }

  absl::Status Run(OpKernelContext* context) {
    const Tensor &input = context->input(0), &kernel = context->input(1);
    TF_RETURN_IF_ERROR(CheckRank4(input, "the input"));
    TF_RETURN_IF_ERROR(CheckRank4(kernel, "the kernel"));
    if (input.dim_size(3) != kernel.dim_size(2)) {
      return absl::InvalidArgumentError(absl::StrCat("the input has ", input.dim_size(3), " channels, the kernel ",
                                                     kernel.shape().DebugString(), " is for ", kernel.dim_size(2)));
    }
    const int64_t channels = kernel.dim_size(2) * kernel.dim_size(3);
    const ConvShape shape = window_.Shape(input, kernel.dim_size(0), kernel.dim_size(1), channels, 1);
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckDepthwise(shape)));
    TF_RETURN_IF_ERROR(CheckOutputSize(shape));
    const TensorShape out_shape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels});
    BorrowedEpilogue borrowed;
    TF_RETURN_IF_ERROR(epilogue_.Borrow(context, shape.out_channels, out_shape, &borrowed));
    Tensor* output;
    TF_RETURN_IF_ERROR(epilogue_.Allocate(context, out_shape, &output));
    return Device::DepthwiseConv2D(context, shape, kernel.flat<int8_t>().data(), input.flat<int8_t>().data(),
                                   epilogue_.input_zero_point, borrowed, output->data(), &cache_);
  }

 private:
  OpEpilogue epilogue_{2, Device::kReadsTensors};
  LayerCache cache_;
  Window window_;
};

}  // namespace keras_lowbit
