// The epilogue as kernels read it: constants in their order, and which of the vector forms are exact for this layer.
#pragma once

#include <cstdint>

#include "core/blocks.h"
#include "core/epilogue.h"

namespace keras_lowbit {

// The vector forms are exact for totals strictly between minus and plus this: twice a total still fits int32.
constexpr int64_t kFastTotalBound = int64_t{1} << 30;

// Constants of one block of output channels, in the order in which the vector epilogues read them.
struct alignas(kAlignment) ChannelBlock {
  int32_t init[kBlockChannels];  // bias - (input zero point + activation offset of the kernel) * sum of weights
  int32_t left[kBlockChannels];  // left shift, 0 but for factors of one and more
  int32_t multiplier[kBlockChannels];
  int32_t
      multiplier_odd[kBlockChannels];  // at even positions c: the multiplier of c + 1, for 32x32->64 multiplications
  int32_t shift[kBlockChannels];       // right shift, 0..30
  int32_t nudge[kBlockChannels];       // half of 2**shift, 0 where nothing is shifted
  double factor[kBlockChannels];       // of dense layers, instead of multiplier and shift
  float fp32_factor[kBlockChannels],
      fp32_nudge[kBlockChannels];  // layers/fp32_requantize.h, instead of multiplier and shift where has_fp32
};

// A multiplication by multiplier * 2**(-31 - shift) that is the same for all channels; 0 <= shift <= 30.
struct UniformFactor {
  int32_t multiplier, shift;
  int32_t nudge() const { return (int32_t{1} << shift) >> 1; }
};

struct PreparedEpilogue {
  // int8 output of which the vector forms are exact: kFixed if |total << left| < kFastTotalBound, every right shift lies
  // in 0..30 and the residual's too; kDouble if |total * factor| < kFastTotalBound, and the same residual. Otherwise
  // `apply_scalar` does the work, a number at a time.
  enum class Fast { kNo, kFixed, kDouble } fast = Fast::kNo;
  bool has_fp32 = false;  // of kFixed: every channel has float32 parameters
  bool has_residual = false;  // its codes may be the output's memory: each is read before its place is written
  UniformFactor first, second, last;  // of the residual add
  const Epilogue* definition = nullptr;
  void* output = nullptr;
  int64_t pixel_stride = 0;  // channels from one pixel of the output to the next
  // totals: [pixels][kBlockChannels], of which `channels` count.
  void (*apply_scalar)(const PreparedEpilogue& prepared, const int32_t* totals, int64_t pixel, int64_t channel,
                       int64_t rows, int64_t channels) = nullptr;
};

}  // namespace keras_lowbit
