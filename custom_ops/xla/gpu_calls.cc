// The layers as calls that XLA makes on a CUDA device, on its stream.
#include "cuda/launch.h"
#include "xla/layers.h"

namespace keras_lowbit::xla_calls {
namespace {

struct GpuDevice {
  cuda::Stream stream;
  ffi::ScratchAllocator* scratch;

  static cuda::ConvCall CallOf(const int8_t* input, int32_t zero_point, const Epilogue& epilogue, void* output) {
    return {input, zero_point, epilogue, {}, output};
  }

  Status Conv2D(const ConvShape& shape, const PackedWeights& weights, const int8_t* input, int32_t zero_point,
                const Epilogue& epilogue, void* output) const {
    const cuda::ConvCall call = CallOf(input, zero_point, epilogue, output);
    int64_t bytes = 0;
    KLB_RETURN_IF_ERROR(cuda::WorkspaceBytes(shape, weights, call, &bytes));
    std::optional<void*> workspace = nullptr;
    if (bytes > 0) workspace = scratch->Allocate(bytes, 16);
    if (!workspace.has_value()) throw std::bad_alloc();
    return cuda::Conv2D(shape, weights, call, *workspace, stream);
  }

  Status DepthwiseConv2D(const ConvShape& shape, const int8_t* kernel, const int8_t* input, int32_t zero_point,
                         const Epilogue& epilogue, void* output) const {
    return cuda::DepthwiseConv2D(shape, kernel, CallOf(input, zero_point, epilogue, output), stream);
  }

  Status MaxPool2D(const ConvShape& shape, const int8_t* input, int32_t padding_code, int32_t low, int32_t high,
                   int8_t* output) const {
    return cuda::MaxPool2D(shape, input, padding_code, low, high, output, stream);
  }

  Status OutputFactors(const float* scale, const float* bias, int64_t channels, float input_scale, float output_scale,
                       int32_t* output) const {
    return cuda::OutputFactors(scale, bias, channels, input_scale, output_scale, output, stream);
  }
};

template <class Layer>
ffi::Error OnGpu(cuda::Stream stream, ffi::ScratchAllocator scratch, ffi::RemainingArgs arguments,
                 ffi::Result<ffi::AnyBuffer> output, ffi::Dictionary attributes) {
  return Guarded([&] {
    Call call(arguments, attributes);
    return Layer::Run(GpuDevice{stream, &scratch}, call, *output);
  });
}

auto Context() { return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>().Ctx<ffi::ScratchAllocator>(); }

}  // namespace
}  // namespace keras_lowbit::xla_calls

using namespace keras_lowbit::xla_calls;

KLB_XLA_CALL(KerasLowbitXlaConv2DGpu, OnGpu<Conv2DCall>, Context());
KLB_XLA_CALL(KerasLowbitXlaDepthwiseConv2DGpu, OnGpu<DepthwiseConv2DCall>, Context());
KLB_XLA_CALL(KerasLowbitXlaMaxPool2DGpu, OnGpu<MaxPool2DCall>, Context());
KLB_XLA_CALL(KerasLowbitXlaOutputFactorsGpu, OnGpu<OutputFactorsCall>, Context());
