#include "kernels/simd/arm_i8mm.h"

namespace keras_lowbit {

// Two pairs of pixels: two k-blocks of 16 channels are decoded at a time, into 8 registers.
void TernaryBlockI8mm(const BlockArgs& args, const ClusterArgs& clusters) {
  RunTernaryBlock<ArmI8mm, 4>(args, clusters);
}

void UnpackTernaryI8mm(const UnpackArgs& args) { Unpack<ArmI8mm>(args); }

}  // namespace keras_lowbit
