// int8 weights: one block of 64 output channels over many pixels.
//
//   total[p][c] = init[c] + sum over taps t, k-blocks b, i = 0..3 of
//                 (rows[t * tap_stride + p][channel_offset + 4 b + i] + activation_offset) * weights[t][b][c][i]
//                 modulo 2**32
//
// weights: the kInt8 layout of core/packing.h, [taps * k_blocks][256] bytes, any alignment. rows point at
// 4 * k_blocks readable bytes each, never one more. activation_offset is 128 where the machine multiplies unsigned
// by signed bytes (x + 128 is x with its top bit flipped), else 0; `init` takes it back out.
// Totals go through the epilogue. No state, no allocation, one thread.
#pragma once

#include <cstdint>

#include "core/blocks.h"
#include "kernels/prepared_epilogue.h"
#include "kernels/isa.h"

namespace keras_lowbit {

struct BlockArgs {
  const int8_t* const* rows = nullptr;
  int64_t tap_stride = 0;
  int64_t pixels = 0, taps = 0, k_blocks = 0;
  int64_t channel_offset = 0;  // added to every row: where the channels in use begin
  const void* weights = nullptr;
  const ChannelBlock* constants = nullptr;
  const PreparedEpilogue* epilogue = nullptr;
  int64_t first_pixel = 0, first_channel = 0;  // where the totals belong in the output
  int64_t channels = kBlockChannels;           // of the block that are real
};

struct Int8BlockKernel {
  void (*run)(const BlockArgs& args);
  int32_t activation_offset;
};

Int8BlockKernel SelectInt8Block(Isa isa);

#define KLB_KERNEL(isa, function, offset) void function(const BlockArgs& args);
#include "kernels/int8_block/kernels.inc"
#undef KLB_KERNEL

}  // namespace keras_lowbit
