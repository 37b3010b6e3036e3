// A CUDA device as the ops see it: kernels of cuda/ on TensorFlow's stream.
#pragma once

#include "cuda/launch.h"
#include "tf/epilogue.h"
#include "xla/stream_executor/stream.h"

namespace keras_lowbit {

struct GpuDevice {
  static constexpr bool kReadsTensors = false;  // they are in the device's memory

  // The stream that TensorFlow puts this op's work on.
  static absl::Status StreamOf(OpKernelContext* context, cuda::Stream* stream) {
    auto* device = context->op_device_context();
    if (device == nullptr || device->stream() == nullptr) return absl::InternalError("a GPU op runs without a stream");
    *stream = device->stream()->platform_specific_handle().stream;
    return absl::OkStatus();
  }

  static cuda::ConvCall CallOf(const int8_t* input, int32_t zero_point, const BorrowedEpilogue& borrowed,
                               void* output) {
    const BorrowedSteps& steps = borrowed.steps;
    return {
        input, zero_point, borrowed.epilogue, {steps.multiplier, steps.shift, steps.factor, steps.float_scale}, output};
  }

  static absl::Status Conv2D(OpKernelContext* context, const ConvShape& shape, const PackedWeights& weights,
                             const int8_t* input, int32_t zero_point, const BorrowedEpilogue& borrowed, void* output,
                             LayerCache*) {
    cuda::Stream stream = nullptr;
    TF_RETURN_IF_ERROR(StreamOf(context, &stream));
    const cuda::ConvCall call = CallOf(input, zero_point, borrowed, output);
    int64_t bytes = 0;
    TF_RETURN_IF_ERROR(ToTensorFlow(cuda::WorkspaceBytes(shape, weights, call, &bytes)));
    Tensor workspace;
    TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_UINT8, TensorShape({bytes}), &workspace));
    return ToTensorFlow(cuda::Conv2D(shape, weights, call, workspace.data(), stream));
  }

  static absl::Status DepthwiseConv2D(OpKernelContext* context, const ConvShape& shape, const int8_t* kernel,
                                      const int8_t* input, int32_t zero_point, const BorrowedEpilogue& borrowed,
                                      void* output, LayerCache*) {
    cuda::Stream stream = nullptr;
    TF_RETURN_IF_ERROR(StreamOf(context, &stream));
    return ToTensorFlow(cuda::DepthwiseConv2D(shape, kernel, CallOf(input, zero_point, borrowed, output), stream));
  }

  static absl::Status MaxPool2D(OpKernelContext* context, const ConvShape& shape, const int8_t* input,
                                int32_t padding_code, int32_t low, int32_t high, int8_t* output) {
    cuda::Stream stream = nullptr;
    TF_RETURN_IF_ERROR(StreamOf(context, &stream));
    return ToTensorFlow(cuda::MaxPool2D(shape, input, padding_code, low, high, output, stream));
  }

  static absl::Status LookUp(OpKernelContext* context, const int8_t* input, int64_t size, const int8_t* table,
                             int8_t* output) {
    cuda::Stream stream = nullptr;
    TF_RETURN_IF_ERROR(StreamOf(context, &stream));
    return ToTensorFlow(cuda::LookUp(input, size, table, output, stream));
  }

  static absl::Status LookUpPair(OpKernelContext* context, const int8_t* first, const int8_t* second, int64_t size,
                                 const int8_t* table, int8_t* output) {
    cuda::Stream stream = nullptr;
    TF_RETURN_IF_ERROR(StreamOf(context, &stream));
    return ToTensorFlow(cuda::LookUpPair(first, second, size, table, output, stream));
  }
};

}  // namespace keras_lowbit
