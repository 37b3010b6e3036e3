// Ops of layers with weights: check, borrow the buffers, call core. Nothing is computed here but sizes. Inputs by
// number, in the order of ops.cc.
#include "layers/layer_cache.h"
#include "layers/layers.h"
#include "tf/attributes.h"
#include "tf/epilogue.h"
#include "tf/threads.h"

namespace keras_lowbit {
namespace {

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

class PackedConv2DOp : public OpKernel {
 public:
  explicit PackedConv2DOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, epilogue_.Init(context));
    OP_REQUIRES_OK(context, window_.Init(context));
    OP_REQUIRES_OK(context, weights_.Init(context));
    OP_REQUIRES_OK(context, context->GetAttr("groups", &groups_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    OP_REQUIRES_OK(context, CheckRank4(input, "the input"));
    const std::vector<int64_t>& kernel = weights_.kernel;
    const ConvShape shape = window_.Shape(input, kernel[0], kernel[1], kernel[3], groups_);
    OP_REQUIRES_OK(context, ToTensorFlow(CheckConv(shape)));
    OP_REQUIRES(context, shape.in_channels == kernel[2] * groups_,
                absl::InvalidArgumentError(absl::StrCat("the input has ", shape.in_channels, " channels; expected ",
                                                        kernel[2], " for each of ", groups_, " groups")));
    OP_REQUIRES_OK(context, CheckOutputSize(shape));
    PackedWeights weights;
    OP_REQUIRES_OK(context, weights_.Borrow(context, shape, &weights));
    const TensorShape out_shape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels});
    BorrowedEpilogue borrowed;
    OP_REQUIRES_OK(context, epilogue_.Borrow(context, shape.out_channels, out_shape, &borrowed));
    Tensor* output;
    OP_REQUIRES_OK(context, epilogue_.Allocate(context, out_shape, &output));
    OP_REQUIRES_OK(context, ToTensorFlow(Conv2D(shape, weights, input.flat<int8_t>().data(), epilogue_.input_zero_point,
                                                borrowed.epilogue, output->data(), Threads(context), &cache_)));
  }

 private:
  OpEpilogue epilogue_{4};
  LayerCache cache_;
  Window window_;
  Weights weights_;
  int64_t groups_ = 1;
};

class PackedDenseOp : public OpKernel {
 public:
  explicit PackedDenseOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, epilogue_.Init(context));
    OP_REQUIRES_OK(context, weights_.Init(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const std::vector<int64_t>& kernel = weights_.kernel;
    OP_REQUIRES(context, input.dims() >= 1 && input.dim_size(input.dims() - 1) == kernel[2],
                absl::InvalidArgumentError(absl::StrCat("the input has shape ", input.shape().DebugString(),
                                                        "; expected [..., ", kernel[2], "]")));
    OP_REQUIRES(context, kernel[0] == 1 && kernel[1] == 1,
                absl::InvalidArgumentError("kernel_shape of a dense layer is [1, 1, inputs, outputs]"));
    DenseShape shape;
    shape.rows = input.NumElements() / kernel[2], shape.in_features = kernel[2], shape.out_features = kernel[3];
    OP_REQUIRES_OK(context, ToTensorFlow(CheckConv(AsConv(shape))));
    OP_REQUIRES_OK(context, CheckOutputSize(AsConv(shape)));
    PackedWeights weights;
    OP_REQUIRES_OK(context, weights_.Borrow(context, AsConv(shape), &weights));
    TensorShape out_shape = input.shape();
    out_shape.set_dim(input.dims() - 1, kernel[3]);
    BorrowedEpilogue borrowed;
    OP_REQUIRES_OK(context, epilogue_.Borrow(context, shape.out_features, out_shape, &borrowed));
    Tensor* output;
    OP_REQUIRES_OK(context, epilogue_.Allocate(context, out_shape, &output));
    OP_REQUIRES_OK(context, ToTensorFlow(Dense(shape, weights, input.flat<int8_t>().data(), epilogue_.input_zero_point,
                                               borrowed.epilogue, output->data(), Threads(context), &cache_)));
  }

 private:
  OpEpilogue epilogue_{4};
  LayerCache cache_;
  Weights weights_;
};

class DepthwiseConv2DOp : public OpKernel {
 public:
  explicit DepthwiseConv2DOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, epilogue_.Init(context));
    OP_REQUIRES_OK(context, window_.Init(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &input = context->input(0), &kernel = context->input(1);
    OP_REQUIRES_OK(context, CheckRank4(input, "the input"));
    OP_REQUIRES_OK(context, CheckRank4(kernel, "the kernel"));
    OP_REQUIRES(context, input.dim_size(3) == kernel.dim_size(2),
                absl::InvalidArgumentError(absl::StrCat("the input has ", input.dim_size(3), " channels, the kernel ",
                                                        kernel.shape().DebugString(), " is for ", kernel.dim_size(2))));
    const int64_t channels = kernel.dim_size(2) * kernel.dim_size(3);
    const ConvShape shape = window_.Shape(input, kernel.dim_size(0), kernel.dim_size(1), channels, 1);
    OP_REQUIRES_OK(context, ToTensorFlow(CheckDepthwise(shape)));
    OP_REQUIRES_OK(context, CheckOutputSize(shape));
    const TensorShape out_shape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels});
    BorrowedEpilogue borrowed;
    OP_REQUIRES_OK(context, epilogue_.Borrow(context, shape.out_channels, out_shape, &borrowed));
    Tensor* output;
    OP_REQUIRES_OK(context, epilogue_.Allocate(context, out_shape, &output));
    OP_REQUIRES_OK(context,
                   ToTensorFlow(DepthwiseConv2D(shape, kernel.flat<int8_t>().data(), input.flat<int8_t>().data(),
                                                epilogue_.input_zero_point, borrowed.epilogue, output->data(),
                                                Threads(context), &cache_)));
  }

 private:
  OpEpilogue epilogue_{2};
  LayerCache cache_;
  Window window_;
};

#define KLB_REGISTER(name, type) REGISTER_KERNEL_BUILDER(Name("KerasLowbit>" name).Device(tensorflow::DEVICE_CPU), type)
KLB_REGISTER("PackedConv2D", PackedConv2DOp);
KLB_REGISTER("PackedDense", PackedDenseOp);
KLB_REGISTER("DepthwiseConv2D", DepthwiseConv2DOp);

}  // namespace
}  // namespace keras_lowbit
