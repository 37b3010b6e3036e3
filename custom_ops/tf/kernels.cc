// Thin kernels: check, borrow the buffers, call core. Nothing is computed here but sizes.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/api.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor_shape.h"
#include "tf/threads.h"

namespace keras_lowbit {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;

// Outputs beyond this many elements are refused: no layer is so large, and the allocator may promise what it lacks.
constexpr int64_t kMaxOutput = std::numeric_limits<int32_t>::max();

absl::Status ToTensorFlow(const Status& status) {
  return status.ok() ? absl::OkStatus() : absl::InvalidArgumentError(status.message());
}

absl::Status ReadInt32(OpKernelConstruction* context, const char* name, int32_t* value) {
  int64_t wide = 0;
  TF_RETURN_IF_ERROR(context->GetAttr(name, &wide));
  *value = static_cast<int32_t>(wide);
  if (*value == wide) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", wide, "; expected an int32"));
}

absl::Status ReadNumbers(OpKernelConstruction* context, const char* name, size_t count, std::vector<int64_t>* numbers) {
  TF_RETURN_IF_ERROR(context->GetAttr(name, numbers));
  if (numbers->size() == count) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " has ", numbers->size(), " numbers; expected ", count));
}

// What one call hands to core beside input and weights: borrowed where a tensor has one value for each channel, spread
// into `store` where it has a single one.
struct Borrowed {
  Epilogue epilogue;
  std::vector<int32_t> multiplier, shift;
  std::vector<double> factor;
  std::vector<float> scale;
};

template <typename T>
absl::Status PerChannel(OpKernelContext* context, const char* name, int64_t channels, std::vector<T>* store,
                        const T** values) {
  const Tensor* tensor;
  TF_RETURN_IF_ERROR(context->input(name, &tensor));
  const int64_t count = tensor->NumElements();
  if (count != channels && count != 1 && count != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", count, " values; expected ", channels, " (one for each output channel), 1 or none"));
  }
  *values = count == 0 ? nullptr : tensor->flat<T>().data();
  if (count == 1 && channels != 1) {
    store->assign(channels, **values);
    *values = store->data();
  }
  return absl::OkStatus();
}

// Attributes of the output stage, read once.
class Stage {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    tensorflow::DataType type;
    TF_RETURN_IF_ERROR(context->GetAttr("out_type", &type));
    base_.type = type == tensorflow::DT_INT8    ? OutputType::kInt8
                 : type == tensorflow::DT_INT32 ? OutputType::kInt32
                                                : OutputType::kFloat;
    TF_RETURN_IF_ERROR(ReadInt32(context, "input_zero_point", &input_zero_point));
    TF_RETURN_IF_ERROR(ReadInt32(context, "zero_point", &base_.requantize.zero_point));
    TF_RETURN_IF_ERROR(ReadInt32(context, "low", &base_.requantize.clamp_min));
    TF_RETURN_IF_ERROR(ReadInt32(context, "high", &base_.requantize.clamp_max));
    TF_RETURN_IF_ERROR(context->GetAttr("float_low", &base_.float_min));
    TF_RETURN_IF_ERROR(context->GetAttr("float_high", &base_.float_max));
    return InitResidual(context);
  }

  // Checks and borrows the tensors of one call whose output has that shape.
  absl::Status Borrow(OpKernelContext* context, int64_t channels, const TensorShape& output, Borrowed* borrowed) const {
    Epilogue& epilogue = borrowed->epilogue = base_;
    std::vector<int32_t> unused;
    TF_RETURN_IF_ERROR(BorrowBias(context, channels, &epilogue.bias));
    TF_RETURN_IF_ERROR(
        PerChannel(context, "multiplier", channels, &borrowed->multiplier, &epilogue.requantize.multiplier));
    TF_RETURN_IF_ERROR(PerChannel(context, "shift", channels, &borrowed->shift, &epilogue.requantize.shift));
    TF_RETURN_IF_ERROR(PerChannel(context, "factor", channels, &borrowed->factor, &epilogue.requantize.factor));
    TF_RETURN_IF_ERROR(PerChannel(context, "float_scale", channels, &borrowed->scale, &epilogue.float_scale));
    TF_RETURN_IF_ERROR(CheckComplete(epilogue));
    const Tensor* residual;
    TF_RETURN_IF_ERROR(context->input("residual", &residual));
    if (!has_residual_) return absl::OkStatus();
    if (residual->shape() != output) {
      return absl::InvalidArgumentError(absl::StrCat("the residual has shape ", residual->shape().DebugString(),
                                                     "; expected the output's, ", output.DebugString()));
    }
    epilogue.residual.codes = residual->flat<int8_t>().data();
    return absl::OkStatus();
  }

  int32_t input_zero_point = 0;

 private:
  absl::Status InitResidual(OpKernelConstruction* context) {
    std::vector<int64_t> wide;
    TF_RETURN_IF_ERROR(context->GetAttr("residual_factors", &wide));
    has_residual_ = !wide.empty();
    if (!has_residual_) return absl::OkStatus();
    if (wide.size() != 10 || base_.type != OutputType::kInt8) {
      return absl::InvalidArgumentError(absl::StrCat("residual_factors has ", wide.size(),
                                                     " numbers; expected none, or 10 and int8 outputs"));
    }
    ResidualAdd& add = base_.residual;
    int32_t* targets[] = {&add.first_multiplier, &add.first_shift,       &add.second_multiplier, &add.second_shift,
                          &add.output_multiplier, &add.output_shift,     &add.zero_point,        &add.output_zero_point,
                          &add.clamp_min,         &add.clamp_max};
    for (size_t i = 0; i < wide.size(); ++i) {
      *targets[i] = static_cast<int32_t>(wide[i]);
      if (*targets[i] != wide[i]) return absl::InvalidArgumentError(absl::StrCat("residual factor ", wide[i], " is no int32"));
    }
    add.line = FindResidualLine(base_.requantize, add);
    return absl::OkStatus();
  }

  absl::Status BorrowBias(OpKernelContext* context, int64_t channels, const int32_t** bias) const {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(context->input("bias", &tensor));
    if (tensor->NumElements() != 0 && tensor->NumElements() != channels) {
      return absl::InvalidArgumentError(
          absl::StrCat("bias has ", tensor->NumElements(), " values; expected ", channels, " or none"));
    }
    *bias = tensor->NumElements() == 0 ? nullptr : tensor->flat<int32_t>().data();
    return absl::OkStatus();
  }

  absl::Status CheckComplete(const Epilogue& epilogue) const {
    const Requantize& r = epilogue.requantize;
    const bool fixed = r.multiplier != nullptr && r.shift != nullptr && r.factor == nullptr;
    const bool once = r.multiplier == nullptr && r.shift == nullptr && r.factor != nullptr;
    if (epilogue.type == OutputType::kInt8 && !fixed && !once) {
      return absl::InvalidArgumentError("int8 outputs need multiplier and shift, or factor: one of the two");
    }
    if (epilogue.type == OutputType::kFloat && epilogue.float_scale == nullptr) {
      return absl::InvalidArgumentError("float outputs need float_scale");
    }
    return absl::OkStatus();
  }

  Epilogue base_;
  bool has_residual_ = false;
};

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

absl::Status CheckRank4(const Tensor& tensor, const char* name) {
  if (tensor.dims() == 4) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " has shape ", tensor.shape().DebugString(), "; expected rank 4"));
}

absl::Status CheckOutputSize(const ConvShape& shape) {
  // A kernel may copy the image with its padding.
  const int64_t rows = shape.in_height + shape.pad_top + shape.pad_bottom;
  const int64_t columns = shape.in_width + shape.pad_left + shape.pad_right;
  const int64_t most = kMaxOutput / std::max<int64_t>(1, shape.in_channels);
  if (rows > most || columns > most || rows * columns > most) {
    return absl::InvalidArgumentError(absl::StrCat("an image with its padding has ", rows, " x ", columns, " pixels of ",
                                                   shape.in_channels, " channels; expected at most ", kMaxOutput, " values"));
  }
  if (shape.output_size() <= kMaxOutput) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the output would have ", shape.output_size(), " elements; expected at most ", kMaxOutput));
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

  // Borrows the arrays of one call; the shape has passed its own check.
  absl::Status Borrow(OpKernelContext* context, const ConvShape& shape, PackedWeights* weights) const {
    const Tensor *codes, *scales, *sums;
    TF_RETURN_IF_ERROR(context->input("codes", &codes));
    TF_RETURN_IF_ERROR(context->input("scales", &scales));
    TF_RETURN_IF_ERROR(context->input("sums", &sums));
    *weights = base_;
    weights->codes = codes->flat<uint8_t>().data(), weights->codes_bytes = codes->NumElements();
    weights->sums = sums->flat<int32_t>().data(), weights->sums_count = sums->NumElements();
    if (scales->NumElements() > 0) {
      weights->scales = scales->flat<int8_t>().data(), weights->scales_bytes = scales->NumElements();
    }
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckWeights(shape, *weights)));
    const bool plain = weights->layout == WeightLayout::kTernary2Bit && weights->scales == nullptr;
    const int64_t bound = MaxAbsAccumulator(shape, plain ? 1 : 127);
    if (bound <= std::numeric_limits<int32_t>::max() || !plain) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("a window can sum to ", bound, ", more than int32 holds: split the layer"));
  }

  std::vector<int64_t> kernel;  // rows, columns, input channels of a group, output channels

 private:
  PackedWeights base_;
};

class PackedConv2DOp : public OpKernel {
 public:
  explicit PackedConv2DOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, stage_.Init(context));
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
                absl::InvalidArgumentError(absl::StrCat("the input has ", shape.in_channels, " channels; expected ", kernel[2],
                                                        " for each of ", groups_, " groups")));
    OP_REQUIRES_OK(context, CheckOutputSize(shape));
    PackedWeights weights;
    OP_REQUIRES_OK(context, weights_.Borrow(context, shape, &weights));
    const TensorShape out_shape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels});
    Borrowed borrowed;
    OP_REQUIRES_OK(context, stage_.Borrow(context, shape.out_channels, out_shape, &borrowed));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, out_shape, &output));
    OP_REQUIRES_OK(context, ToTensorFlow(Conv2D(shape, weights, input.flat<int8_t>().data(), stage_.input_zero_point,
                                                borrowed.epilogue, output->data(), Threads(context))));
  }

 private:
  Stage stage_;
  Window window_;
  Weights weights_;
  int64_t groups_ = 1;
};

class PackedDenseOp : public OpKernel {
 public:
  explicit PackedDenseOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, stage_.Init(context));
    OP_REQUIRES_OK(context, weights_.Init(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const std::vector<int64_t>& kernel = weights_.kernel;
    OP_REQUIRES(context, input.dims() >= 1 && input.dim_size(input.dims() - 1) == kernel[2],
                absl::InvalidArgumentError(absl::StrCat("the input has shape ", input.shape().DebugString(), "; expected [..., ",
                                                        kernel[2], "]")));
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
    Borrowed borrowed;
    OP_REQUIRES_OK(context, stage_.Borrow(context, shape.out_features, out_shape, &borrowed));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, out_shape, &output));
    OP_REQUIRES_OK(context, ToTensorFlow(Dense(shape, weights, input.flat<int8_t>().data(), stage_.input_zero_point,
                                               borrowed.epilogue, output->data(), Threads(context))));
  }

 private:
  Stage stage_;
  Weights weights_;
};

class DepthwiseConv2DOp : public OpKernel {
 public:
  explicit DepthwiseConv2DOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, stage_.Init(context));
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
    Borrowed borrowed;
    OP_REQUIRES_OK(context, stage_.Borrow(context, shape.out_channels, out_shape, &borrowed));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, out_shape, &output));
    OP_REQUIRES_OK(context, ToTensorFlow(DepthwiseConv2D(shape, kernel.flat<int8_t>().data(), input.flat<int8_t>().data(),
                                                         stage_.input_zero_point, borrowed.epilogue, output->data(),
                                                         Threads(context))));
  }

 private:
  Stage stage_;
  Window window_;
};

class MaxPool2DOp : public OpKernel {
 public:
  explicit MaxPool2DOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, window_.Init(context));
    OP_REQUIRES_OK(context, ReadNumbers(context, "window", 2, &sizes_));
    OP_REQUIRES_OK(context, ReadInt32(context, "padding_code", &padding_code_));
    OP_REQUIRES_OK(context, ReadInt32(context, "low", &low_));
    OP_REQUIRES_OK(context, ReadInt32(context, "high", &high_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    OP_REQUIRES_OK(context, CheckRank4(input, "the input"));
    const ConvShape shape = window_.Shape(input, sizes_[0], sizes_[1], input.dim_size(3), 1);
    OP_REQUIRES_OK(context, ToTensorFlow(CheckConv(shape)));
    OP_REQUIRES_OK(context, CheckOutputSize(shape));
    Tensor* output;
    const TensorShape out_shape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels});
    OP_REQUIRES_OK(context, context->allocate_output(0, out_shape, &output));
    OP_REQUIRES_OK(context, ToTensorFlow(MaxPool2D(shape, input.flat<int8_t>().data(), padding_code_, low_, high_,
                                                   output->flat<int8_t>().data(), Threads(context))));
  }

 private:
  Window window_;
  std::vector<int64_t> sizes_;
  int32_t padding_code_ = 0, low_ = 0, high_ = 0;
};

class LookUpOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &input = context->input(0), &table = context->input(1);
    OP_REQUIRES(context, table.NumElements() == 256,
                absl::InvalidArgumentError(absl::StrCat("the table has ", table.NumElements(), " codes; expected 256")));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, input.shape(), &output));
    const int8_t *from = input.flat<int8_t>().data(), *codes = table.flat<int8_t>().data() + 128;
    int8_t* to = output->flat<int8_t>().data();
    Threads(context)(input.NumElements(), 1, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = codes[from[i]];
    });
  }
};

class LookUpPairOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &first = context->input(0), &second = context->input(1), &table = context->input(2);
    OP_REQUIRES(context, first.shape() == second.shape(),
                absl::InvalidArgumentError(absl::StrCat("the inputs have shapes ", first.shape().DebugString(), " and ",
                                                        second.shape().DebugString(), "; expected equal ones")));
    OP_REQUIRES(context, table.NumElements() == 65536,
                absl::InvalidArgumentError(absl::StrCat("the table has ", table.NumElements(), " codes; expected 65536")));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, first.shape(), &output));
    const int8_t *a = first.flat<int8_t>().data(), *b = second.flat<int8_t>().data(), *codes = table.flat<int8_t>().data();
    int8_t* to = output->flat<int8_t>().data();
    Threads(context)(first.NumElements(), 2, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = codes[(a[i] + 128) * 256 + (b[i] + 128)];
    });
  }
};

#define KLB_REGISTER(name, type) REGISTER_KERNEL_BUILDER(Name("KerasLowbit>" name).Device(tensorflow::DEVICE_CPU), type)
KLB_REGISTER("PackedConv2D", PackedConv2DOp);
KLB_REGISTER("PackedDense", PackedDenseOp);
KLB_REGISTER("DepthwiseConv2D", DepthwiseConv2DOp);
KLB_REGISTER("MaxPool2D", MaxPool2DOp);
KLB_REGISTER("LookUp", LookUpOp);
KLB_REGISTER("LookUpPair", LookUpPairOp);

}  // namespace
}  // namespace keras_lowbit
