// Ops of layers with weights: check, borrow the buffers, call the device's kernels. Nothing is computed here but sizes.
// Inputs by number, in the order of ops.cc. What a `Device` has: tf/cpu_device.h, tf_cuda/gpu_device.h.
#pragma once

#include <array>
#include <memory>
#include <mutex>

#include "core/packing.h"
#include "layers/layer_cache.h"
#include "tf/attributes.h"
#include "tf/epilogue.h"

namespace keras_lowbit {

// Sizes of one call of a layer, checked.
struct LayerSizes {
  ConvShape shape;
  TensorShape output;
};

// A layer's op. What a `Layer` has:
//   kInputs    how many inputs come before the epilogue's
//   Init       reads its attributes
//   Sizes      checks those inputs and says what they come to; asked again only when their shapes change
//   Run        calls the device
template <class Device, class Layer>
class LayerOp {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(epilogue_.Init(context));
    return layer_.Init(context);
  }

  absl::Status Run(OpKernelContext* context) {
    std::shared_ptr<const Known> known;
    TF_RETURN_IF_ERROR(GetSizes(context, &known));
    const LayerSizes& sizes = known->sizes;
    BorrowedEpilogue borrowed;
    TF_RETURN_IF_ERROR(epilogue_.Borrow(context, sizes.shape.out_channels, sizes.output, &borrowed));
    Tensor* output;
    TF_RETURN_IF_ERROR(epilogue_.Allocate(context, sizes.output, &output));
    return layer_.template Run<Device>(context, sizes.shape, epilogue_.input_zero_point, borrowed, output->data(),
                                       &cache_);
  }

 private:
  struct Known {
    std::array<TensorShape, Layer::kInputs> inputs;
    LayerSizes sizes;
  };

  absl::Status GetSizes(OpKernelContext* context, std::shared_ptr<const Known>* known) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      *known = known_;
    }
    if (*known != nullptr && IsFor(**known, context)) return absl::OkStatus();
    const auto made = std::make_shared<Known>();
    TF_RETURN_IF_ERROR(layer_.Sizes(context, &made->sizes));
    for (int i = 0; i < Layer::kInputs; ++i) made->inputs[i] = context->input(i).shape();
    *known = made;
    std::lock_guard<std::mutex> lock(mutex_);
    known_ = made;
    return absl::OkStatus();
  }

  static bool IsFor(const Known& known, OpKernelContext* context) {
    for (int i = 0; i < Layer::kInputs; ++i) {
      if (known.inputs[i] != context->input(i).shape()) return false;
    }
    return true;
  }

  Layer layer_;
  OpEpilogue epilogue_{Layer::kInputs, Device::kReadsTensors};
  LayerCache cache_;
  std::mutex mutex_;
  std::shared_ptr<const Known> known_;
};

// The output of a convolution of that shape, or why it is too large.
inline absl::Status ImageSizes(const ConvShape& shape, LayerSizes* sizes) {
  TF_RETURN_IF_ERROR(CheckOutputSize(shape));
  *sizes = {shape, TensorShape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels})};
  return absl::OkStatus();
}

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

  // The arrays of one call.
  PackedWeights Borrow(OpKernelContext* context) const {
    const Tensor &codes = context->input(1), &scales = context->input(2), &sums = context->input(3);
    PackedWeights weights = base_;
    weights.codes = codes.data(), weights.codes_bytes = codes.NumElements();
    weights.sums = static_cast<const int32_t*>(sums.data()), weights.sums_count = sums.NumElements();
    if (scales.NumElements() > 0) {
      weights.scales = static_cast<const int8_t*>(scales.data()), weights.scales_bytes = scales.NumElements();
    }
    return weights;
  }

  // Whether they fit a shape, which has passed its own check.
  absl::Status Check(OpKernelContext* context, const ConvShape& shape) const {
    const PackedWeights weights = Borrow(context);
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckWeights(shape, weights)));
    const bool plain = weights.layout == WeightLayout::kTernary2Bit && weights.scales == nullptr;
    const int64_t bound = MaxAbsAccumulator(shape, plain ? 1 : 127);
    if (bound <= std::numeric_limits<int32_t>::max() || !plain) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("a window can sum to ", bound, ", more than int32 holds: split the layer"));
  }

  std::vector<int64_t> kernel;  // rows, columns, input channels of a group, output channels

 private:
  PackedWeights base_;
};

// Layers on packed weights.
class PackedLayer {
 public:
  static constexpr int kInputs = 4;

  template <class Device>
  absl::Status Run(OpKernelContext* context, const ConvShape& shape, int32_t zero_point,
                   const BorrowedEpilogue& borrowed, void* output, LayerCache* cache) const {
    const auto* input = static_cast<const int8_t*>(context->input(0).data());
    return Device::Conv2D(context, shape, weights_.Borrow(context), input, zero_point, borrowed, output, cache);
  }

 protected:
  Weights weights_;
};

class PackedConv2DLayer : public PackedLayer {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(window_.Init(context));
    TF_RETURN_IF_ERROR(weights_.Init(context));
    return context->GetAttr("groups", &groups_);
  }

  absl::Status Sizes(OpKernelContext* context, LayerSizes* sizes) const {
    const Tensor& input = context->input(0);
    TF_RETURN_IF_ERROR(CheckRank4(input, "the input"));
    const std::vector<int64_t>& kernel = weights_.kernel;
    const ConvShape shape = window_.Shape(input, kernel[0], kernel[1], kernel[3], groups_);
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckConv(shape)));
    if (shape.in_channels != kernel[2] * groups_) {
      return absl::InvalidArgumentError(absl::StrCat("the input has ", shape.in_channels, " channels; expected ",
                                                     kernel[2], " for each of ", groups_, " groups"));
    }
    TF_RETURN_IF_ERROR(ImageSizes(shape, sizes));
    return weights_.Check(context, shape);
  }

 private:
  Window window_;
  int64_t groups_ = 1;
};

class PackedDenseLayer : public PackedLayer {
 public:
  absl::Status Init(OpKernelConstruction* context) { return weights_.Init(context); }

  absl::Status Sizes(OpKernelContext* context, LayerSizes* sizes) const {
    const Tensor& input = context->input(0);
    const std::vector<int64_t>& kernel = weights_.kernel;
    if (input.dims() < 1 || input.dim_size(input.dims() - 1) != kernel[2]) {
      return absl::InvalidArgumentError(
          absl::StrCat("the input has shape ", input.shape().DebugString(), "; expected [..., ", kernel[2], "]"));
    }
    if (kernel[0] != 1 || kernel[1] != 1) {
      return absl::InvalidArgumentError("kernel_shape of a dense layer is [1, 1, inputs, outputs]");
    }
    *sizes = {AsConv({input.NumElements() / kernel[2], kernel[2], kernel[3]}), input.shape()};
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckConv(sizes->shape)));
    TF_RETURN_IF_ERROR(CheckOutputSize(sizes->shape));
    sizes->output.set_dim(input.dims() - 1, kernel[3]);
    return weights_.Check(context, sizes->shape);
  }
};

class DepthwiseConv2DLayer {
 public:
  static constexpr int kInputs = 2;

  absl::Status Init(OpKernelConstruction* context) { return window_.Init(context); }

  absl::Status Sizes(OpKernelContext* context, LayerSizes* sizes) const {
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
    return ImageSizes(shape, sizes);
  }

  template <class Device>
  absl::Status Run(OpKernelContext* context, const ConvShape& shape, int32_t zero_point,
                   const BorrowedEpilogue& borrowed, void* output, LayerCache* cache) const {
    const auto codes = [&](int which) { return static_cast<const int8_t*>(context->input(which).data()); };
    return Device::DepthwiseConv2D(context, shape, codes(1), codes(0), zero_point, borrowed, output, cache);
  }

 private:
  Window window_;
};

template <class Device>
using PackedConv2DOp = LayerOp<Device, PackedConv2DLayer>;
template <class Device>
using PackedDenseOp = LayerOp<Device, PackedDenseLayer>;
template <class Device>
using DepthwiseConv2DOp = LayerOp<Device, DepthwiseConv2DLayer>;

}  // namespace keras_lowbit
