// The layers as calls that XLA makes on a CUDA device, on its stream.
#include "cuda/launch.h"
#include "core/export.h"
#include "xla/conv2d.h"

namespace keras_lowbit::xla_calls {
namespace {

ffi::Error Conv2DOnGpu(cuda::Stream stream, ffi::ScratchAllocator scratch, ffi::Buffer<ffi::S8> input,
                       ffi::Buffer<ffi::U8> codes, ffi::Buffer<ffi::S8> scales, ffi::Buffer<ffi::S32> sums,
                       ffi::Buffer<ffi::S32> bias, ffi::Buffer<ffi::S32> multiplier, ffi::Buffer<ffi::S32> shift,
                       ffi::Buffer<ffi::F32> float_scale, ffi::Result<ffi::AnyBuffer> output,
                       ffi::Dictionary attributes) {
  return Guarded([&] {
    Layer layer;
    const Operands given = {input, codes, scales, sums, bias, multiplier, shift, float_scale};
    KLB_RETURN_IF_ERROR(LayerOf(given, *output, attributes, &layer));
    cuda::ConvCall call;
    call.input = input.typed_data(), call.input_zero_point = layer.input_zero_point;
    call.epilogue = layer.epilogue, call.output = output->untyped_data();
    int64_t bytes = 0;
    KLB_RETURN_IF_ERROR(cuda::WorkspaceBytes(layer.shape, layer.weights, call, &bytes));
    std::optional<void*> workspace = nullptr;
    if (bytes > 0) workspace = scratch.Allocate(bytes, 16);
    if (!workspace.has_value()) throw std::bad_alloc();
    return cuda::Conv2D(layer.shape, layer.weights, call, *workspace, stream);
  });
}

}  // namespace
}  // namespace keras_lowbit::xla_calls

KLB_EXPORT XLA_FFI_Error* KerasLowbitXlaConv2DGpu(XLA_FFI_CallFrame* call);

XLA_FFI_DEFINE_HANDLER_SYMBOL(KerasLowbitXlaConv2DGpu, keras_lowbit::xla_calls::Conv2DOnGpu,
                              keras_lowbit::xla_calls::WithOperands(xla::ffi::Ffi::Bind()
                                                                        .Ctx<xla::ffi::PlatformStream<void*>>()
                                                                        .Ctx<xla::ffi::ScratchAllocator>()));
