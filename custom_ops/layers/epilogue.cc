#include "layers/epilogue.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/finish.h"
#include "core/requantize.h"

namespace keras_lowbit {
namespace {

Status CheckCode(const char* name, int32_t value) {
  if (-128 <= value && value <= 127) return Status();
  return Status::Error(std::string(name) + " is " + std::to_string(value) + "; expected an int8 code, -128 to 127");
}

Status CheckClamp(const char* name, int32_t low, int32_t high) {
  KLB_RETURN_IF_ERROR(CheckCode(name, low));
  KLB_RETURN_IF_ERROR(CheckCode(name, high));
  if (low <= high) return Status();
  return Status::Error(std::string(name) + " runs from " + std::to_string(low) + " down to " + std::to_string(high) +
                       "; expected the lower code first");
}

Status CheckResidual(const ResidualAdd& add) {
  KLB_RETURN_IF_ERROR(CheckCode("the residual's zero point", add.zero_point));
  KLB_RETURN_IF_ERROR(CheckCode("the residual's output zero point", add.output_zero_point));
  KLB_RETURN_IF_ERROR(CheckClamp("the residual's clamp", add.clamp_min, add.clamp_max));
  KLB_RETURN_IF_ERROR(CheckShift("the residual's first shift", add.first_shift));
  KLB_RETURN_IF_ERROR(CheckShift("the residual's second shift", add.second_shift));
  return CheckShift("the residual's output shift", add.output_shift);
}

bool IsFastShift(int32_t shift) { return -30 <= shift && shift <= 0; }

bool IsFastResidual(const ResidualAdd& add) {
  return add.codes == nullptr ||
         (IsFastShift(add.first_shift) && IsFastShift(add.second_shift) && IsFastShift(add.output_shift) &&
          add.first_multiplier >= 0 && add.second_multiplier >= 0 && add.output_multiplier >= 0);
}

// The residual may lie where the output goes: nothing is written there but the result, and that at once.
void ApplyInt8(const PreparedEpilogue& prepared, const int32_t* totals, int64_t position, int64_t channel,
               int64_t channels) {
  const Requantize& requantize = prepared.definition->requantize;
  const ResidualAdd& add = prepared.definition->residual;
  int8_t* y = static_cast<int8_t*>(prepared.output) + position;
  for (int64_t c = 0; c < channels; ++c) {
    const int8_t code = Requantized(requantize, FactorOf(requantize, channel + c), totals[c]);
    y[c] = prepared.has_residual ? AddResidual(add, code, requantize.zero_point, add.codes[position + c]) : code;
  }
}

void ApplyFloat(const PreparedEpilogue& prepared, const int32_t* totals, int64_t position, int64_t channel,
                int64_t channels) {
  const Epilogue& epilogue = *prepared.definition;
  float* y = static_cast<float*>(prepared.output) + position;
  for (int64_t c = 0; c < channels; ++c) {
    y[c] = Rescaled(epilogue, totals[c], epilogue.float_scale[channel + c]);
  }
}

void ApplyScalar(const PreparedEpilogue& prepared, const int32_t* totals, int64_t pixel, int64_t channel, int64_t rows,
                 int64_t channels) {
  for (int64_t r = 0; r < rows; ++r, totals += kBlockChannels) {
    const int64_t position = (pixel + r) * prepared.pixel_stride + channel;
    switch (prepared.definition->type) {
      case OutputType::kInt8:
        ApplyInt8(prepared, totals, position, channel, channels);
        break;
      case OutputType::kInt32:
        std::copy_n(totals, channels, static_cast<int32_t*>(prepared.output) + position);
        break;
      case OutputType::kFloat:
        ApplyFloat(prepared, totals, position, channel, channels);
        break;
    }
  }
}

}  // namespace

Status CheckEpilogue(const Epilogue& epilogue) {
  const Requantize& requantize = epilogue.requantize;
  const bool int8 = epilogue.type == OutputType::kInt8;
  if (int8 && requantize.factor == nullptr && (requantize.multiplier == nullptr || requantize.shift == nullptr)) {
    return Status::Error("an int8 output came without factors; expected multiplier and shift, or factor, per channel");
  }
  if (epilogue.type == OutputType::kFloat && epilogue.float_scale == nullptr) {
    return Status::Error("a float output came without float_scale; expected one scale per channel");
  }
  if (!int8) {
    if (epilogue.residual.codes == nullptr) return Status();
    return Status::Error("a residual came with an int32 or float output; expected int8: add it afterwards");
  }
  KLB_RETURN_IF_ERROR(CheckCode("the output's zero point", requantize.zero_point));
  KLB_RETURN_IF_ERROR(CheckClamp("the activation's clamp", requantize.clamp_min, requantize.clamp_max));
  return epilogue.residual.codes == nullptr ? Status() : CheckResidual(epilogue.residual);
}

PreparedEpilogue PrepareEpilogue(const Epilogue& epilogue, const Constants& constants, int64_t out_channels,
                                 void* output) {
  PreparedEpilogue prepared;
  prepared.fast = IsFastResidual(epilogue.residual) ? constants.fast : PreparedEpilogue::Fast::kNo;
  prepared.has_fp32 = constants.has_fp32;
  prepared.has_residual = epilogue.residual.codes != nullptr;
  prepared.first = {epilogue.residual.first_multiplier, -epilogue.residual.first_shift};
  prepared.second = {epilogue.residual.second_multiplier, -epilogue.residual.second_shift};
  prepared.last = {epilogue.residual.output_multiplier, -epilogue.residual.output_shift};
  prepared.definition = &epilogue;
  prepared.output = output;
  prepared.pixel_stride = out_channels;
  prepared.apply_scalar = ApplyScalar;
  return prepared;
}

}  // namespace keras_lowbit
