// The CPU as the ops see it: kernels of layers/ on TensorFlow's threads.
#pragma once

#include "layers/layers.h"
#include "tf/epilogue.h"
#include "tf/threads.h"

namespace keras_lowbit {

struct CpuDevice {
  static constexpr bool kReadsTensors = true;

  static absl::Status Conv2D(OpKernelContext* context, const ConvShape& shape, const PackedWeights& weights,
                             const int8_t* input, int32_t zero_point, const BorrowedEpilogue& borrowed, void* output,
                             LayerCache* cache) {
    return ToTensorFlow(
        keras_lowbit::Conv2D(shape, weights, input, zero_point, borrowed.epilogue, output, Threads(context), cache));
  }

  static absl::Status DepthwiseConv2D(OpKernelContext* context, const ConvShape& shape, const int8_t* kernel,
                                      const int8_t* input, int32_t zero_point, const BorrowedEpilogue& borrowed,
                                      void* output, LayerCache* cache) {
    return ToTensorFlow(keras_lowbit::DepthwiseConv2D(shape, kernel, input, zero_point, borrowed.epilogue, output,
                                                      Threads(context), cache));
  }

  static absl::Status MaxPool2D(OpKernelContext* context, const ConvShape& shape, const int8_t* input,
                                int32_t padding_code, int32_t low, int32_t high, int8_t* output) {
    return ToTensorFlow(keras_lowbit::MaxPool2D(shape, input, padding_code, low, high, output, Threads(context)));
  }

  static absl::Status LookUp(OpKernelContext* context, const int8_t* input, int64_t size, const int8_t* table,
                             int8_t* output) {
    const int8_t* codes = table + 128;
    RunAll(Threads(context), size, 1, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) output[i] = codes[input[i]];
    });
    return absl::OkStatus();
  }

  static absl::Status LookUpPair(OpKernelContext* context, const int8_t* first, const int8_t* second, int64_t size,
                                 const int8_t* table, int8_t* output) {
    RunAll(Threads(context), size, 2, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) output[i] = table[(first[i] + 128) * 256 + (second[i] + 128)];
    });
    return absl::OkStatus();
  }
};

}  // namespace keras_lowbit
