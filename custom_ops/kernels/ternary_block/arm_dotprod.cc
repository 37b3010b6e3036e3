#include "kernels/simd/arm_dotprod.h"

namespace keras_lowbit {

void TernaryBlockDotprod(const BlockArgs& args, const ClusterArgs& clusters) {
  RunTernaryBlock<ArmDotprod, 5>(args, clusters);
}

void UnpackTernaryDotprod(const UnpackArgs& args) { Unpack<ArmDotprod>(args); }

}  // namespace keras_lowbit
