#include "layers/output.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/requantize.h"

namespace keras_lowbit {
namespace {

constexpr int64_t kFastTotals = int64_t{1} << 30;

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

Status CheckShift(const char* name, int32_t shift) {
  if (-31 <= shift && shift <= 31) return Status();
  return Status::Error(std::string(name) + " is " + std::to_string(shift) +
                       "; expected -31 to 31: form factors with quantize_multiplier");
}

Status CheckResidual(const ResidualAdd& add) {
  KLB_RETURN_IF_ERROR(CheckCode("the residual's zero point", add.zero_point));
  KLB_RETURN_IF_ERROR(CheckCode("the residual's output zero point", add.output_zero_point));
  KLB_RETURN_IF_ERROR(CheckClamp("the residual's clamp", add.clamp_min, add.clamp_max));
  KLB_RETURN_IF_ERROR(CheckShift("the residual's first shift", add.first_shift));
  KLB_RETURN_IF_ERROR(CheckShift("the residual's second shift", add.second_shift));
  return CheckShift("the residual's output shift", add.output_shift);
}

// Runs at every call over all channels, so these loops have no branch that would keep them from being vectorised.
Status CheckShifts(const Epilogue& epilogue, int64_t out_channels) {
  const int32_t* shift = epilogue.requantize.shift;
  int32_t least = 0, most = 0;
  for (int64_t c = 0; c < out_channels; ++c) least = std::min(least, shift[c]), most = std::max(most, shift[c]);
  KLB_RETURN_IF_ERROR(CheckShift("a shift", least));
  return CheckShift("a shift", most);
}

bool IsFastShift(int32_t shift) { return -30 <= shift && shift <= 0; }

// A right shift of 0 would need a mask in the vector epilogue; factors of one half and more are rare enough. Shift 0 is
// usual with multiplier 0 only. Comparisons as bits, so that the loop is vectorised for the lowest CPU too.
bool AreFastFactors(const Requantize& requantize, int64_t out_channels) {
  int32_t odd = 0;
  for (int64_t c = 0; c < out_channels; ++c) {
    const int32_t multiplier = requantize.multiplier[c], shift = requantize.shift[c];
    odd |= (multiplier < 0 ? -1 : 0) | (shift < -30 ? -1 : 0) | ((shift > -1 ? -1 : 0) & (multiplier | shift));
  }
  return odd == 0;
}

int64_t MaxAbsBias(const Epilogue& epilogue, int64_t out_channels) {
  int32_t least = 0, most = 0;
  for (int64_t c = 0; epilogue.bias != nullptr && c < out_channels; ++c) {
    least = std::min(least, epilogue.bias[c]), most = std::max(most, epilogue.bias[c]);
  }
  return std::max(-int64_t{least}, int64_t{most});
}

bool IsFastResidual(const ResidualAdd& add) {
  return add.codes == nullptr ||
         (IsFastShift(add.first_shift) && IsFastShift(add.second_shift) && IsFastShift(add.output_shift) &&
          add.first_multiplier >= 0 && add.second_multiplier >= 0 && add.output_multiplier >= 0);
}

// NaN factors fail the comparison and so take the slow way.
bool AreFastDoubles(const double* factor, int64_t out_channels, double max_abs_total) {
  for (int64_t c = 0; c < out_channels; ++c) {
    if (!(std::fabs(factor[c]) * max_abs_total < kFastTotals)) return false;
  }
  return true;
}

OutputStage::Fast FastOf(const Epilogue& epilogue, int64_t out_channels, int64_t max_abs_total) {
  using Fast = OutputStage::Fast;
  if (epilogue.type != OutputType::kInt8 || !IsFastResidual(epilogue.residual)) return Fast::kNo;
  const int64_t most = MaxAbsBias(epilogue, out_channels);
  if (max_abs_total >= kFastTotals - most) return Fast::kNo;
  const Requantize& requantize = epilogue.requantize;
  if (requantize.factor == nullptr) return AreFastFactors(requantize, out_channels) ? Fast::kFixed : Fast::kNo;
  const bool fast = AreFastDoubles(requantize.factor, out_channels, static_cast<double>(max_abs_total + most));
  return fast ? Fast::kDouble : Fast::kNo;
}

int8_t AddResidual(const ResidualAdd& add, int32_t code, int32_t zero_point, int32_t other) {
  const int32_t first =
      MultiplyByQuantizedMultiplier((code - zero_point) * (1 << 20), add.first_multiplier, add.first_shift);
  const int32_t second =
      MultiplyByQuantizedMultiplier((other - add.zero_point) * (1 << 20), add.second_multiplier, add.second_shift);
  const int32_t sum = MultiplyByQuantizedMultiplier(WrapAdd(first, second), add.output_multiplier, add.output_shift);
  return ToCode(sum, add.output_zero_point, add.clamp_min, add.clamp_max);
}

int8_t Requantized(const Requantize& requantize, int32_t total, int64_t channel) {
  const int32_t scaled =
      requantize.factor != nullptr
          ? MultiplyByDouble(total, requantize.factor[channel])
          : MultiplyByQuantizedMultiplier(total, requantize.multiplier[channel], requantize.shift[channel]);
  return ToCode(scaled, requantize.zero_point, requantize.clamp_min, requantize.clamp_max);
}

void FinishInt8(const OutputStage& stage, const int32_t* totals, int64_t position, int64_t channel, int64_t channels) {
  const Epilogue& epilogue = *stage.epilogue;
  int8_t* y = static_cast<int8_t*>(stage.output) + position;
  for (int64_t c = 0; c < channels; ++c) {
    y[c] = Requantized(epilogue.requantize, totals[c], channel + c);
    if (stage.has_residual) {
      y[c] =
          AddResidual(epilogue.residual, y[c], epilogue.requantize.zero_point, epilogue.residual.codes[position + c]);
    }
  }
}

void FinishFloat(const OutputStage& stage, const int32_t* totals, int64_t position, int64_t channel, int64_t channels) {
  const Epilogue& epilogue = *stage.epilogue;
  float* y = static_cast<float*>(stage.output) + position;
  for (int64_t c = 0; c < channels; ++c) {
    const float scaled = static_cast<float>(totals[c]) * epilogue.float_scale[channel + c];
    y[c] = std::min(std::max(scaled, epilogue.float_min), epilogue.float_max);
  }
}

void Finish(const OutputStage& stage, const int32_t* totals, int64_t pixel, int64_t channel, int64_t rows,
            int64_t channels) {
  for (int64_t r = 0; r < rows; ++r, totals += 64) {
    const int64_t position = (pixel + r) * stage.pixel_stride + channel;
    switch (stage.epilogue->type) {
      case OutputType::kInt8:
        FinishInt8(stage, totals, position, channel, channels);
        break;
      case OutputType::kInt32:
        std::copy_n(totals, channels, static_cast<int32_t*>(stage.output) + position);
        break;
      case OutputType::kFloat:
        FinishFloat(stage, totals, position, channel, channels);
        break;
    }
  }
}

}  // namespace

Status CheckEpilogue(const Epilogue& epilogue, int64_t out_channels) {
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
  if (requantize.factor == nullptr) KLB_RETURN_IF_ERROR(CheckShifts(epilogue, out_channels));
  return epilogue.residual.codes == nullptr ? Status() : CheckResidual(epilogue.residual);
}

OutputStage MakeOutputStage(const Epilogue& epilogue, int64_t out_channels, int64_t max_abs_total, void* output) {
  OutputStage stage;
  stage.fast = FastOf(epilogue, out_channels, max_abs_total);
  stage.has_residual = epilogue.residual.codes != nullptr;
  stage.first = {epilogue.residual.first_multiplier, -epilogue.residual.first_shift};
  stage.second = {epilogue.residual.second_multiplier, -epilogue.residual.second_shift};
  stage.last = {epilogue.residual.output_multiplier, -epilogue.residual.output_shift};
  stage.epilogue = &epilogue;
  stage.output = output;
  stage.pixel_stride = out_channels;
  stage.finish = Finish;
  return stage;
}

void FillConstants(const Epilogue& epilogue, const OutputStage& stage, const int32_t* sums, int32_t correction,
                   int64_t channel, int64_t channels, ChannelBlock* block) {
  if (channels < 64) std::memset(block, 0, sizeof *block);
  for (int64_t c = 0; c < channels; ++c) block->init[c] = WrapSub(0, WrapMul(correction, sums[c]));
  for (int64_t c = 0; epilogue.bias != nullptr && c < channels; ++c) {
    block->init[c] = WrapAdd(block->init[c], epilogue.bias[channel + c]);
  }
  if (stage.fast == OutputStage::Fast::kDouble)
    std::copy_n(epilogue.requantize.factor + channel, channels, block->factor);
  if (stage.fast != OutputStage::Fast::kFixed) return;
  const int32_t* multiplier = epilogue.requantize.multiplier + channel;
  const int32_t* shift = epilogue.requantize.shift + channel;
  std::copy_n(multiplier, channels, block->multiplier);
  std::copy_n(multiplier + 1, channels - 1, block->multiplier_odd);
  for (int64_t c = 0; c < channels; ++c) {
    block->shift[c] = shift[c] == 0 ? 1 : -shift[c];  // 0 goes with multiplier 0
    block->nudge[c] = int32_t{1} << (block->shift[c] - 1);
  }
}

}  // namespace keras_lowbit
