// The layers as calls of XLA: read, check, borrow the buffers, call the device's kernels. Nothing is computed here but
// sizes. What a `Device` has: cpu_calls.cc, gpu_calls.cc.
#pragma once

#include "core/epilogue.h"
#include "core/packing.h"
#include "core/shapes.h"
#include "xla/call.h"

namespace keras_lowbit::xla_calls {

// The window of a layer whose input is argument 0 and has `out_channels` outputs.
inline ConvShape ShapeOf(Call& call, int64_t kernel_height, int64_t kernel_width, int64_t out_channels,
                         int64_t groups) {
  ConvShape s;
  const int64_t* sizes = call.Sizes(0);
  s.batch = sizes[0], s.in_height = sizes[1], s.in_width = sizes[2], s.in_channels = sizes[3];
  s.kernel_height = kernel_height, s.kernel_width = kernel_width;
  s.out_channels = out_channels, s.groups = groups;
  s.stride_height = call.Number("stride_height"), s.stride_width = call.Number("stride_width");
  s.dilation_height = call.Number("dilation_height"), s.dilation_width = call.Number("dilation_width");
  s.pad_top = call.Number("pad_top"), s.pad_bottom = call.Number("pad_bottom");
  s.pad_left = call.Number("pad_left"), s.pad_right = call.Number("pad_right");
  return s;
}

// Arguments 1 to 3.
inline PackedWeights WeightsOf(Call& call) {
  PackedWeights weights;
  weights.layout = call.Number("is_int8") != 0 ? WeightLayout::kInt8 : WeightLayout::kTernary2Bit;
  weights.cluster_size = call.Number("cluster_size");
  weights.scales_per_tap = call.Number("scales_per_tap") != 0;
  const auto codes = call.Values<ffi::U8>(1);
  const auto scales = call.Values<ffi::S8>(2);
  const auto sums = call.Values<ffi::S32>(3);
  weights.codes = codes.data, weights.codes_bytes = codes.size;
  weights.scales = scales.data, weights.scales_bytes = scales.size;
  weights.sums = sums.data, weights.sums_count = sums.size;
  return weights;
}

inline void ReadResidual(Call& call, ResidualAdd* add) {
  add->zero_point = call.Number32("residual_zero_point");
  add->first_multiplier = call.Number32("residual_first_multiplier");
  add->first_shift = call.Number32("residual_first_shift");
  add->second_multiplier = call.Number32("residual_second_multiplier");
  add->second_shift = call.Number32("residual_second_shift");
  add->output_multiplier = call.Number32("residual_output_multiplier");
  add->output_shift = call.Number32("residual_output_shift");
  add->output_zero_point = call.Number32("residual_output_zero_point");
  add->clamp_min = call.Number32("residual_low"), add->clamp_max = call.Number32("residual_high");
}

// Arguments from `first` on: bias, multiplier, shift, factor (a double as two words), float_scale, residual; what a layer
// lacks is empty.
inline Status EpilogueOf(Call& call, size_t first, const ConvShape& shape, ffi::DataType type, Epilogue* epilogue) {
  const auto bias = call.Values<ffi::S32>(first), multiplier = call.Values<ffi::S32>(first + 1),
             shift = call.Values<ffi::S32>(first + 2);
  const auto factor = call.Values<ffi::U32>(first + 3);
  const auto scale = call.Values<ffi::F32>(first + 4);
  const auto residual = call.Values<ffi::S8>(first + 5);
  epilogue->type = type == ffi::S8 ? OutputType::kInt8 : type == ffi::S32 ? OutputType::kInt32 : OutputType::kFloat;
  epilogue->bias = bias.data, epilogue->float_scale = scale.data;
  epilogue->float_min = call.Real("float_low"), epilogue->float_max = call.Real("float_high");
  Requantize& requantize = epilogue->requantize;
  requantize.multiplier = multiplier.data, requantize.shift = shift.data;
  requantize.factor = reinterpret_cast<const double*>(factor.data);
  requantize.zero_point = call.Number32("zero_point");
  requantize.clamp_min = call.Number32("low"), requantize.clamp_max = call.Number32("high");
  epilogue->residual.codes = residual.data;
  if (residual.size > 0) ReadResidual(call, &epilogue->residual);
  KLB_RETURN_IF_ERROR(PerChannel("bias", bias, shape.out_channels));
  KLB_RETURN_IF_ERROR(PerChannel("multiplier", multiplier, shape.out_channels));
  KLB_RETURN_IF_ERROR(PerChannel("shift", shift, shape.out_channels));
  KLB_RETURN_IF_ERROR(PerChannel("words of factor", factor, 2 * shape.out_channels));
  KLB_RETURN_IF_ERROR(PerChannel("float_scale", scale, shape.out_channels));
  if (residual.size == 0 || residual.size == shape.output_size()) return call.missing();
  return Status::Error("a residual has " + std::to_string(residual.size) + " codes; expected " +
                       std::to_string(shape.output_size()) + ", as the output");
}

struct Conv2DCall {
  template <class Device>
  static Status Run(const Device& device, Call& call, const ffi::AnyBuffer& output) {
    const ConvShape shape = ShapeOf(call, call.Number("kernel_height"), call.Number("kernel_width"),
                                    call.Number("out_channels"), call.Number("groups"));
    const PackedWeights weights = WeightsOf(call);
    KLB_RETURN_IF_ERROR(CheckConv(shape));
    Epilogue epilogue;
    KLB_RETURN_IF_ERROR(EpilogueOf(call, 4, shape, output.element_type(), &epilogue));
    const int32_t zero_point = call.Number32("input_zero_point");
    const int8_t* input = call.Values<ffi::S8>(0).data;
    KLB_RETURN_IF_ERROR(call.missing());
    KLB_RETURN_IF_ERROR(CheckSize(output, shape.output_size()));
    return device.Conv2D(shape, weights, input, zero_point, epilogue, output.untyped_data());
  }
};

// Argument 1: the kernel [rows, columns, channels, multiplier].
struct DepthwiseConv2DCall {
  template <class Device>
  static Status Run(const Device& device, Call& call, const ffi::AnyBuffer& output) {
    const int64_t* kernel = call.Sizes(1);
    const ConvShape shape = ShapeOf(call, kernel[0], kernel[1], kernel[2] * kernel[3], 1);
    if (shape.in_channels != kernel[2]) return Status::Error("a depthwise kernel is for other channels than its input");
    KLB_RETURN_IF_ERROR(CheckDepthwise(shape));
    Epilogue epilogue;
    KLB_RETURN_IF_ERROR(EpilogueOf(call, 2, shape, output.element_type(), &epilogue));
    const int32_t zero_point = call.Number32("input_zero_point");
    const int8_t *input = call.Values<ffi::S8>(0).data, *weights = call.Values<ffi::S8>(1).data;
    KLB_RETURN_IF_ERROR(call.missing());
    KLB_RETURN_IF_ERROR(CheckSize(output, shape.output_size()));
    return device.DepthwiseConv2D(shape, weights, input, zero_point, epilogue, output.untyped_data());
  }
};

struct MaxPool2DCall {
  template <class Device>
  static Status Run(const Device& device, Call& call, const ffi::AnyBuffer& output) {
    const ConvShape shape =
        ShapeOf(call, call.Number("kernel_height"), call.Number("kernel_width"), call.Sizes(0)[3], 1);
    const int32_t code = call.Number32("padding_code"), low = call.Number32("low"), high = call.Number32("high");
    const int8_t* input = call.Values<ffi::S8>(0).data;
    KLB_RETURN_IF_ERROR(call.missing());
    KLB_RETURN_IF_ERROR(CheckConv(shape));
    KLB_RETURN_IF_ERROR(CheckSize(output, shape.output_size()));
    return device.MaxPool2D(shape, input, code, low, high, static_cast<int8_t*>(output.untyped_data()));
  }
};

// Arguments: scale and bias of each channel. Output: int32 [multiplier, shift, bias][channels].
struct OutputFactorsCall {
  template <class Device>
  static Status Run(const Device& device, Call& call, const ffi::AnyBuffer& output) {
    const auto scale = call.Values<ffi::F32>(0), bias = call.Values<ffi::F32>(1);
    const float input_scale = call.Real("input_scale"), output_scale = call.Real("output_scale");
    KLB_RETURN_IF_ERROR(call.missing());
    KLB_RETURN_IF_ERROR(PerChannel("bias", bias, scale.size));
    KLB_RETURN_IF_ERROR(CheckSize(output, 3 * scale.size));
    return device.OutputFactors(scale.data, bias.data, scale.size, input_scale, output_scale,
                                static_cast<int32_t*>(output.untyped_data()));
  }
};

}  // namespace keras_lowbit::xla_calls
