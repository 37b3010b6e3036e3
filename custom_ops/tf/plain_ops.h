// Ops without weights: check, borrow the buffers, call the device's kernels.
#pragma once

#include "tf/attributes.h"

namespace keras_lowbit {

template <class Device>
class MaxPool2DOp {
 public:
  absl::Status Init(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(window_.Init(context));
    TF_RETURN_IF_ERROR(ReadNumbers(context, "window", 2, &sizes_));
    TF_RETURN_IF_ERROR(ReadInt32(context, "padding_code", &padding_code_));
    TF_RETURN_IF_ERROR(ReadInt32(context, "low", &low_));
    return ReadInt32(context, "high", &high_);
  }

  absl::Status Run(OpKernelContext* context) {
    const Tensor& input = context->input(0);
    TF_RETURN_IF_ERROR(CheckRank4(input, "the input"));
    const ConvShape shape = window_.Shape(input, sizes_[0], sizes_[1], input.dim_size(3), 1);
    TF_RETURN_IF_ERROR(ToTensorFlow(CheckConv(shape)));
    TF_RETURN_IF_ERROR(CheckOutputSize(shape));
    Tensor* output;
    const TensorShape out_shape({shape.batch, shape.out_height(), shape.out_width(), shape.out_channels});
    TF_RETURN_IF_ERROR(context->allocate_output(0, out_shape, &output));
    return Device::MaxPool2D(context, shape, input.flat<int8_t>().data(), padding_code_, low_, high_,
                             output->flat<int8_t>().data());
  }

 private:
  Window window_;
  std::vector<int64_t> sizes_;
  int32_t padding_code_ = 0, low_ = 0, high_ = 0;
};

inline absl::Status CheckTable(const Tensor& table, int64_t codes) {
  if (table.NumElements() == codes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the table has ", table.NumElements(), " codes; expected ", codes));
}

template <class Device>
class LookUpOp {
 public:
  absl::Status Init(OpKernelConstruction*) { return absl::OkStatus(); }

  absl::Status Run(OpKernelContext* context) {
    const Tensor &input = context->input(0), &table = context->input(1);
    TF_RETURN_IF_ERROR(CheckTable(table, 256));
    Tensor* output;
    TF_RETURN_IF_ERROR(context->allocate_output(0, input.shape(), &output));
    return Device::LookUp(context, input.flat<int8_t>().data(), input.NumElements(), table.flat<int8_t>().data(),
                          output->flat<int8_t>().data());
  }
};

template <class Device>
class LookUpPairOp {
 public:
  absl::Status Init(OpKernelConstruction*) { return absl::OkStatus(); }

  absl::Status Run(OpKernelContext* context) {
    const Tensor &first = context->input(0), &second = context->input(1), &table = context->input(2);
    if (first.shape() != second.shape()) {
      return absl::InvalidArgumentError(absl::StrCat("the inputs have shapes ", first.shape().DebugString(), " and ",
                                                     second.shape().DebugString(), "; expected equal ones"));
    }
    TF_RETURN_IF_ERROR(CheckTable(table, 65536));
    Tensor* output;
    TF_RETURN_IF_ERROR(context->allocate_output(0, first.shape(), &output));
    return Device::LookUpPair(context, first.flat<int8_t>().data(), second.flat<int8_t>().data(), first.NumElements(),
                              table.flat<int8_t>().data(), output->flat<int8_t>().data());
  }
};

}  // namespace keras_lowbit
