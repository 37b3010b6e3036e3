// Ops without weights: check, borrow the buffers, run.
#include "layers/layers.h"
#include "tf/attributes.h"
#include "tf/threads.h"

namespace keras_lowbit {
namespace {

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
    OP_REQUIRES(
        context, table.NumElements() == 256,
        absl::InvalidArgumentError(absl::StrCat("the table has ", table.NumElements(), " codes; expected 256")));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, input.shape(), &output));
    const int8_t *from = input.flat<int8_t>().data(), *codes = table.flat<int8_t>().data() + 128;
    int8_t* to = output->flat<int8_t>().data();
    RunAll(Threads(context), input.NumElements(), 1, [=](int64_t begin, int64_t end) {
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
    OP_REQUIRES(
        context, table.NumElements() == 65536,
        absl::InvalidArgumentError(absl::StrCat("the table has ", table.NumElements(), " codes; expected 65536")));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, first.shape(), &output));
    const int8_t *a = first.flat<int8_t>().data(), *b = second.flat<int8_t>().data(),
                 *codes = table.flat<int8_t>().data();
    int8_t* to = output->flat<int8_t>().data();
    RunAll(Threads(context), first.NumElements(), 2, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = codes[(a[i] + 128) * 256 + (b[i] + 128)];
    });
  }
};

#define KLB_REGISTER(name, type) REGISTER_KERNEL_BUILDER(Name("KerasLowbit>" name).Device(tensorflow::DEVICE_CPU), type)
KLB_REGISTER("MaxPool2D", MaxPool2DOp);
KLB_REGISTER("LookUp", LookUpOp);
KLB_REGISTER("LookUpPair", LookUpPairOp);

}  // namespace
}  // namespace keras_lowbit
