// mma.sync.m16n8k32 for a GPU that has none: the lanes hand each other their fragments and multiply four bytes at a time.
#pragma once

#include "cuda/device.h"

namespace keras_lowbit::cuda {

// peers.A(lane, i) and peers.B(lane, i): register i of that lane's fragment. All lanes call it together.
template <class Peers>
KLB_DEVICE void MultiplyByDots(int lane, const Peers& peers, int32_t c[4]) {
  const int group = lane / 4, step = lane % 4;
  // A loop in the machine code too: 32 of these products stand in a stage, and ptxas took minutes for them unrolled.
  KLB_DEVICE_NO_UNROLL for (int other = 0; other < 4; ++other) {
    KLB_DEVICE_UNROLL for (int half = 0; half < 2; ++half) {
      const uint32_t upper = peers.A(4 * group + other, 2 * half), lower = peers.A(4 * group + other, 2 * half + 1);
      KLB_DEVICE_UNROLL for (int column = 0; column < 2; ++column) {
        const uint32_t b = peers.B(4 * (2 * step + column) + other, half);
        c[column] = DotAdd(upper, b, c[column]);
        c[2 + column] = DotAdd(lower, b, c[2 + column]);
      }
    }
  }
}

}  // namespace keras_lowbit::cuda
