// How a kernel hands over the int32 totals of some pixels and one block of 64 output channels.
#pragma once

#include <cstdint>

#include "core/api.h"

namespace keras_lowbit {

// Constants of 64 output channels, in the order in which the vector epilogues read them.
struct alignas(64) ChannelBlock {
  int32_t init[64];  // bias - (input zero point + activation offset of the kernel) * sum of weights
  int32_t multiplier[64];
  int32_t multiplier_odd[64];            // at even positions c: the multiplier of c + 1, for 32x32->64 multiplications
  int32_t shift[64];                     // right shift, 1..30
  int32_t nudge[64];                     // 2**(shift - 1)
  double factor[64];                     // of dense layers, instead of multiplier and shift
  float line_slope[64], line_nudge[64];  // layers/factor_line.h, instead of multiplier and shift where there are lines
};

// A multiplication by multiplier * 2**(-31 - shift) that is the same for all channels; 0 <= shift <= 30.
struct UniformFactor {
  int32_t multiplier, shift;
  int32_t nudge() const { return shift == 0 ? 0 : int32_t{1} << (shift - 1); }
  int32_t sign_mask() const { return shift == 0 ? 0 : -1; }
};

struct OutputStage {
  // int8 output of which the vector epilogues are exact: kFixed if |total| < 2**30, every right shift lies in 1..30
  // and the residual's in 0..30; kDouble if |total * factor| < 2**30, and the same residual. Otherwise `finish`
  // does the work, a number at a time.
  enum class Fast { kNo, kFixed, kDouble } fast = Fast::kNo;
  bool has_lines = false;  // of kFixed: every channel has one
  bool has_residual = false;
  UniformFactor first, second, last;  // of the residual add
  const Epilogue* epilogue = nullptr;
  void* output = nullptr;
  int64_t pixel_stride = 0;  // channels from one pixel of the output to the next
  // totals: [rows][64], of which `channels` count.
  void (*finish)(const OutputStage& stage, const int32_t* totals, int64_t pixel, int64_t channel, int64_t rows,
                 int64_t channels) = nullptr;
};

}  // namespace keras_lowbit
