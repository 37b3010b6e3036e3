// A layer's arrays on the device, and its call.
#pragma once

#include "cuda/launch.h"
#include "test/cases.h"
#include "cuda/device_array.h"

namespace keras_lowbit::test {

struct DeviceData {
  explicit DeviceData(const Data& d)
      : x(d.x),
        kernel(d.kernel),
        scales(d.scales),
        residual(d.residual),
        codes(d.codes),
        sums(d.sums),
        bias(d.bias),
        multiplier(d.multiplier),
        shift(d.shift),
        factor(d.factor),
        float_scale(d.float_scale) {
    weights = d.weights;
    weights.codes = codes.data(), weights.sums = sums.data(), weights.scales = scales.data_or_null();
    epilogue = d.epilogue;
    if (epilogue.bias != nullptr) epilogue.bias = bias.data();
    Requantize& r = epilogue.requantize;
    r.multiplier = multiplier.data(), r.shift = shift.data();
    if (r.factor != nullptr) r.factor = factor.data();
    epilogue.float_scale = float_scale.data();
    epilogue.residual.codes = residual.data_or_null();
  }

  cuda::DeviceArray<int8_t> x, kernel, scales, residual;
  cuda::DeviceArray<uint8_t> codes;
  cuda::DeviceArray<int32_t> sums, bias, multiplier, shift;
  cuda::DeviceArray<double> factor;
  cuda::DeviceArray<float> float_scale;
  PackedWeights weights;
  Epilogue epilogue;
};

inline Status RunOnDevice(const Layer& layer, const DeviceData& d, cuda::ConvCall call) {
  call.input = d.x.data();
  call.input_zero_point = layer.zero_point;
  if (layer.kind == Kind::kDepthwise) return cuda::DepthwiseConv2D(layer.shape, d.kernel.data(), call, nullptr);
  int64_t bytes = 0;
  KLB_RETURN_IF_ERROR(cuda::WorkspaceBytes(layer.shape, d.weights, call, &bytes));
  const cuda::DeviceArray<uint8_t> workspace(bytes);
  return cuda::Conv2D(layer.shape, d.weights, call, workspace.data(), nullptr);
}

}  // namespace keras_lowbit::test
