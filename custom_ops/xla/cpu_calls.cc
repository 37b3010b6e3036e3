// The layers as calls that XLA makes on the CPU, on its own threads.
#include "layers/layers.h"
#include "layers/shared_work.h"
#include "core/export.h"
#include "xla/conv2d.h"

namespace keras_lowbit::xla_calls {
namespace {

struct Pool {
  ffi::ThreadPool* threads;
  int64_t NumThreads() const { return threads->num_threads(); }
  template <class Function>
  void Schedule(Function function) {
    threads->Schedule(std::move(function));
  }
};

ffi::Error Conv2DOnCpu(ffi::ThreadPool threads, ffi::Buffer<ffi::S8> input, ffi::Buffer<ffi::U8> codes,
                       ffi::Buffer<ffi::S8> scales, ffi::Buffer<ffi::S32> sums, ffi::Buffer<ffi::S32> bias,
                       ffi::Buffer<ffi::S32> multiplier, ffi::Buffer<ffi::S32> shift, ffi::Buffer<ffi::F32> float_scale,
                       ffi::Result<ffi::AnyBuffer> output, ffi::Dictionary attributes) {
  return Guarded([&] {
    Layer layer;
    const Operands given = {input, codes, scales, sums, bias, multiplier, shift, float_scale};
    KLB_RETURN_IF_ERROR(LayerOf(given, *output, attributes, &layer));
    Pool pool = {&threads};
    ParallelFor parallel;
    if (pool.NumThreads() > 1) {
      parallel = [&pool](int64_t count, int64_t cost, const Work& work) { RunOn(&pool, count, cost, work); };
    }
    return Conv2D(layer.shape, layer.weights, input.typed_data(), layer.input_zero_point, layer.epilogue,
                  output->untyped_data(), parallel);
  });
}

}  // namespace
}  // namespace keras_lowbit::xla_calls

KLB_EXPORT XLA_FFI_Error* KerasLowbitXlaConv2DCpu(XLA_FFI_CallFrame* call);

XLA_FFI_DEFINE_HANDLER_SYMBOL(KerasLowbitXlaConv2DCpu, keras_lowbit::xla_calls::Conv2DOnCpu,
                              keras_lowbit::xla_calls::WithOperands(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));
