// From the sums of up to four neighbouring channels of a pixel to the output: zero point, bias and epilogue.
#pragma once

#include "core/finish.h"
#include "cuda/args.h"
#include "cuda/device.h"

namespace keras_lowbit::cuda {

// The int32 total of a channel from the sum of its products.
KLB_DEVICE int32_t TotalOf(const OutputArgs& out, int32_t sum, int32_t channel) {
  if (out.sums != nullptr) {
    const int32_t group = channel / out.group_outputs;
    const int32_t weights = out.sums[group * out.group_sums + channel - group * out.group_outputs];
    sum = WrapSub(sum, WrapMul(out.input_zero_point, weights));
  }
  return out.epilogue.bias == nullptr ? sum : WrapAdd(sum, out.epilogue.bias[channel]);
}

KLB_DEVICE ChannelFactor FactorAt(const OutputArgs& out, int32_t channel) {
  const Requantize& r = out.epilogue.requantize;
  if (r.factor != nullptr) return {true, 0, 0, r.factor[channel * out.steps.factor]};
  return {false, r.multiplier[channel * out.steps.multiplier], r.shift[channel * out.steps.shift], 0};
}

KLB_DEVICE void WriteCodes(const OutputArgs& out, const int32_t* sums, int64_t position, int32_t channel, int count) {
  const ResidualAdd& add = out.epilogue.residual;
  const uint32_t others = add.codes == nullptr ? 0 : LoadBytes(add.codes + position, count);
  uint32_t codes = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t total = TotalOf(out, sums[i], channel + i);
    int32_t code = Requantized(out.epilogue.requantize, FactorAt(out, channel + i), total);
    if (add.codes != nullptr) code = AddResidual(add, code, out.epilogue.requantize.zero_point, ByteOf(others, i));
    codes |= static_cast<uint32_t>(static_cast<uint8_t>(code)) << (8 * i);
  }
  StoreBytes(codes, static_cast<int8_t*>(out.output) + position, count);
}

// sums: of channels channel .. channel + count - 1 of one pixel, count 1..4. The residual may lie where the output goes:
// its codes are read first.
KLB_DEVICE void WriteOutput(const OutputArgs& out, const int32_t* sums, int64_t pixel, int32_t channel, int count) {
  const int64_t position = pixel * out.out_channels + channel;
  if (out.epilogue.type == OutputType::kInt8) return WriteCodes(out, sums, position, channel, count);
  for (int i = 0; i < count; ++i) {
    const int32_t total = TotalOf(out, sums[i], channel + i);
    if (out.epilogue.type == OutputType::kInt32) {
      static_cast<int32_t*>(out.output)[position + i] = total;
    } else {
      const float scale = out.epilogue.float_scale[(channel + i) * out.steps.float_scale];
      static_cast<float*>(out.output)[position + i] = Rescaled(out.epilogue, total, scale);
    }
  }
}

// The sums of one slice of k, or of all of it.
KLB_DEVICE void WriteSums(const ConvArgs& a, int32_t slice, const int32_t* sums, int64_t pixel, int32_t channel,
                          int count) {
  if (a.slices == 1) return WriteOutput(a.out, sums, pixel, channel, count);
  int32_t* partials = a.partials + (static_cast<int64_t>(slice) * a.pixels + pixel) * a.out.out_channels + channel;
  for (int i = 0; i < count; ++i) partials[i] = sums[i];
}

// Adds up the slices: one number for each four channels of a pixel.
struct AddSlices {
  ConvArgs a;

  KLB_HOST_DEVICE int64_t count() const { return static_cast<int64_t>(a.pixels) * Quads(); }
  KLB_HOST_DEVICE int32_t Quads() const { return (a.out.out_channels + 3) / 4; }
  KLB_DEVICE void operator()(int64_t index) const {
    const int64_t pixel = index / Quads(), all = static_cast<int64_t>(a.pixels) * a.out.out_channels;
    const int32_t channel = static_cast<int32_t>(index - pixel * Quads()) * 4;
    const int count = a.out.out_channels - channel < 4 ? a.out.out_channels - channel : 4;
    int32_t sums[4] = {};
    for (int32_t slice = 0; slice < a.slices; ++slice) {
      const int32_t* partials = a.partials + slice * all + pixel * a.out.out_channels + channel;
      for (int i = 0; i < count; ++i) sums[i] = WrapAdd(sums[i], partials[i]);
    }
    WriteOutput(a.out, sums, pixel, channel, count);
  }
};

}  // namespace keras_lowbit::cuda
