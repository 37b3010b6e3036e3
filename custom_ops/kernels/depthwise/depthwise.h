// Depthwise convolution: one block of up to 64 channels over many pixels.
//
//   total[p][c] = init[c] + sum over taps t of
//                 (rows[t * tap_stride + p][channel_offset + c] + activation_offset) * weight[t][c]
//
// weights: int8 [ceil(taps / kKBlock)][kBlockChannels][kKBlock], tap 4 q + i of channel c at [q][Slot(c)][i], zero
// beyond the last tap. The rows of those missing taps are never read. `channels` bytes of each row are readable,
// and no more.
#pragma once

#include "kernels/int8_block/int8_block.h"

namespace keras_lowbit {

struct DepthwiseKernel {
  void (*run)(const BlockArgs& args);  // BlockArgs::k_blocks is not used
  int32_t activation_offset;
  int32_t lanes;
  int64_t products_per_nanosecond = 1;  // of a thread, about

  // Where channel c of a block stands among the weights. Machines interleave the taps within 128-bit lanes of
  // 16 channels, four channels at a time: c = 16 lane + 4 q + i goes to 4 (lanes * q + lane) + i.
  int64_t Slot(int64_t c) const {
    const int64_t width = 16 * lanes, inside = c % width;
    return c - inside + 4 * (lanes * (inside % 16 / 4) + inside / 16) + inside % 4;
  }
};

DepthwiseKernel SelectDepthwise(Isa isa);

#define KLB_KERNEL(isa, function, offset, lanes, products) void function(const BlockArgs& args);
#include "kernels/depthwise/kernels.inc"
#undef KLB_KERNEL

}  // namespace keras_lowbit
