// The layers as calls that XLA makes on the CPU, on its own threads.
#include "core/output_factors.h"
#include "layers/layers.h"
#include "layers/shared_work.h"
#include "xla/layers.h"

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

class CpuDevice {
 public:
  explicit CpuDevice(Pool* pool) {
    if (pool->NumThreads() == 1) return;
    parallel_ = [pool](int64_t count, int64_t cost, const Work& work) { RunOn(pool, count, cost, work); };
  }

  Status Conv2D(const ConvShape& shape, const PackedWeights& weights, const int8_t* input, int32_t zero_point,
                const Epilogue& epilogue, void* output) const {
    return keras_lowbit::Conv2D(shape, weights, input, zero_point, epilogue, output, parallel_);
  }

  Status DepthwiseConv2D(const ConvShape& shape, const int8_t* kernel, const int8_t* input, int32_t zero_point,
                         const Epilogue& epilogue, void* output) const {
    return keras_lowbit::DepthwiseConv2D(shape, kernel, input, zero_point, epilogue, output, parallel_);
  }

  Status MaxPool2D(const ConvShape& shape, const int8_t* input, int32_t padding_code, int32_t low, int32_t high,
                   int8_t* output) const {
    return keras_lowbit::MaxPool2D(shape, input, padding_code, low, high, output, parallel_);
  }

  Status OutputFactors(const float* scale, const float* bias, int64_t channels, float input_scale, float output_scale,
                       int32_t* output) const {
    for (int64_t c = 0; c < channels; ++c) {
      const OutputFactor factor = OutputFactorOf(scale[c], bias == nullptr ? 0 : bias[c], input_scale, output_scale);
      output[c] = factor.multiplier, output[channels + c] = factor.shift, output[2 * channels + c] = factor.bias;
    }
    return Status();
  }

 private:
  ParallelFor parallel_;
};

template <class Layer>
ffi::Error OnCpu(ffi::ThreadPool threads, ffi::RemainingArgs arguments, ffi::Result<ffi::AnyBuffer> output,
                 ffi::Dictionary attributes) {
  return Guarded([&] {
    Pool pool = {&threads};
    Call call(arguments, attributes);
    return Layer::Run(CpuDevice(&pool), call, *output);
  });
}

auto Context() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

}  // namespace
}  // namespace keras_lowbit::xla_calls

using namespace keras_lowbit::xla_calls;

KLB_XLA_CALL(KerasLowbitXlaConv2DCpu, OnCpu<Conv2DCall>, Context());
KLB_XLA_CALL(KerasLowbitXlaDepthwiseConv2DCpu, OnCpu<DepthwiseConv2DCall>, Context());
KLB_XLA_CALL(KerasLowbitXlaMaxPool2DCpu, OnCpu<MaxPool2DCall>, Context());
KLB_XLA_CALL(KerasLowbitXlaOutputFactorsCpu, OnCpu<OutputFactorsCall>, Context());
