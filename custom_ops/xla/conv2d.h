// What the XLA handlers of convolutions and dense layers are handed, and the layer that it means. Attributes by name:
// keras_lowbit/ops/jax_functions.py gives them.
#pragma once

#include <new>
#include <string>

#include "core/epilogue.h"
#include "core/packing.h"
#include "core/shapes.h"
#include "core/status.h"
#include "xla/ffi/api/ffi.h"

namespace keras_lowbit::xla_calls {

namespace ffi = ::xla::ffi;

// As the ops' inputs; what a layer lacks is empty. multiplier, shift, float_scale: one value for each output channel.
struct Operands {
  ffi::Buffer<ffi::S8> input;
  ffi::Buffer<ffi::U8> codes;
  ffi::Buffer<ffi::S8> scales;
  ffi::Buffer<ffi::S32> sums, bias, multiplier, shift;
  ffi::Buffer<ffi::F32> float_scale;
};

struct Layer {
  ConvShape shape;
  PackedWeights weights;
  Epilogue epilogue;
  int32_t input_zero_point = 0;
};

inline ffi::Error ToError(const Status& status) {
  return status.ok() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kInvalidArgument, status.message());
}

// Reads attributes until one is missing, and remembers that.
class Attributes {
 public:
  explicit Attributes(const ffi::Dictionary& from) : from_(from) {}
  int64_t Get(const char* name) {
    const auto value = from_.get<int64_t>(name);
    if (value.has_value()) return *value;
    missing_ = Status::Error(std::string("an XLA call of a layer came without the attribute ") + name);
    return 1;
  }
  const Status& missing() const { return missing_; }

 private:
  const ffi::Dictionary& from_;
  Status missing_;
};

template <class Buffer>
auto* DataOrNull(const Buffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : buffer.typed_data();
}

inline ConvShape ShapeOf(Attributes& attributes, const Operands& given) {
  ConvShape s;
  const auto sizes = given.input.dimensions();
  s.batch = sizes[0], s.in_height = sizes[1], s.in_width = sizes[2], s.in_channels = sizes[3];
  s.kernel_height = attributes.Get("kernel_height"), s.kernel_width = attributes.Get("kernel_width");
  s.out_channels = attributes.Get("out_channels"), s.groups = attributes.Get("groups");
  s.stride_height = attributes.Get("stride_height"), s.stride_width = attributes.Get("stride_width");
  s.dilation_height = attributes.Get("dilation_height"), s.dilation_width = attributes.Get("dilation_width");
  s.pad_top = attributes.Get("pad_top"), s.pad_bottom = attributes.Get("pad_bottom");
  s.pad_left = attributes.Get("pad_left"), s.pad_right = attributes.Get("pad_right");
  return s;
}

inline PackedWeights WeightsOf(Attributes& attributes, const Operands& given) {
  PackedWeights weights;
  weights.layout = attributes.Get("is_int8") != 0 ? WeightLayout::kInt8 : WeightLayout::kTernary2Bit;
  weights.cluster_size = attributes.Get("cluster_size");
  weights.scales_per_tap = attributes.Get("scales_per_tap") != 0;
  weights.codes = DataOrNull(given.codes), weights.codes_bytes = given.codes.element_count();
  weights.scales = DataOrNull(given.scales), weights.scales_bytes = given.scales.element_count();
  weights.sums = DataOrNull(given.sums), weights.sums_count = given.sums.element_count();
  return weights;
}

inline Epilogue EpilogueOf(Attributes& attributes, const Operands& given, ffi::DataType type) {
  Epilogue epilogue;
  epilogue.type = type == ffi::S8 ? OutputType::kInt8 : type == ffi::S32 ? OutputType::kInt32 : OutputType::kFloat;
  epilogue.bias = DataOrNull(given.bias);
  epilogue.requantize.multiplier = DataOrNull(given.multiplier), epilogue.requantize.shift = DataOrNull(given.shift);
  epilogue.requantize.zero_point = static_cast<int32_t>(attributes.Get("zero_point"));
  epilogue.requantize.clamp_min = static_cast<int32_t>(attributes.Get("low"));
  epilogue.requantize.clamp_max = static_cast<int32_t>(attributes.Get("high"));
  epilogue.float_scale = DataOrNull(given.float_scale);
  return epilogue;
}

inline Status CheckCounts(const Operands& given, int64_t channels) {
  const int64_t counts[] = {
      static_cast<int64_t>(given.bias.element_count()), static_cast<int64_t>(given.multiplier.element_count()),
      static_cast<int64_t>(given.shift.element_count()), static_cast<int64_t>(given.float_scale.element_count())};
  for (const int64_t count : counts) {
    if (count == 0 || count == channels) continue;
    return Status::Error("an XLA call of a layer has " + std::to_string(count) + " values for its " +
                         std::to_string(channels) + " output channels; expected one for each, or none");
  }
  return Status();
}

// The layer of one call, checked as far as its buffers go; the kernels check the rest.
inline Status LayerOf(const Operands& given, const ffi::AnyBuffer& output, const ffi::Dictionary& from, Layer* layer) {
  if (given.input.dimensions().size() != 4) return Status::Error("the input of an XLA call has no rank of 4");
  Attributes attributes(from);
  layer->shape = ShapeOf(attributes, given);
  layer->weights = WeightsOf(attributes, given);
  layer->epilogue = EpilogueOf(attributes, given, output.element_type());
  layer->input_zero_point = static_cast<int32_t>(attributes.Get("input_zero_point"));
  KLB_RETURN_IF_ERROR(attributes.missing());
  KLB_RETURN_IF_ERROR(CheckConv(layer->shape));
  KLB_RETURN_IF_ERROR(CheckCounts(given, layer->shape.out_channels));
  const int64_t size = static_cast<int64_t>(output.element_count());
  if (size == layer->shape.output_size()) return Status();
  return Status::Error("the output of an XLA call has " + std::to_string(size) + " elements; expected " +
                       std::to_string(layer->shape.output_size()));
}

// What `body` returns, or an error for what it throws: XLA catches nothing.
template <class Body>
ffi::Error Guarded(const Body& body) noexcept {
  try {
    return ToError(body());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a compiled layer: use smaller batches");
  } catch (...) {
    return ffi::Error(ffi::ErrorCode::kInternal, "an exception inside a compiled layer");
  }
}

// The operands of a binding, in their order.
template <class Binding>
auto WithOperands(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::U8>>()
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<ffi::AnyBuffer>()
      .Attrs();
}

}  // namespace keras_lowbit::xla_calls
