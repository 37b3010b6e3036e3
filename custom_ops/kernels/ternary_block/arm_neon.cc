#include "kernels/simd/arm_neon.h"

namespace keras_lowbit {

void TernaryBlockNeon(const BlockArgs& args, const ClusterArgs& clusters) {
  RunTernaryBlock<ArmNeon, 2>(args, clusters);
}

void UnpackTernaryNeon(const UnpackArgs& args) { Unpack<ArmNeon>(args); }

}  // namespace keras_lowbit
