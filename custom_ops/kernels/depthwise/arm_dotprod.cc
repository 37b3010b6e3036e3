#include "kernels/simd/arm_dotprod.h"
#include "kernels/simd/depthwise.h"

namespace keras_lowbit {

void DepthwiseDotprod(const BlockArgs& args) { RunDepthwise<ArmDotprod>(args); }

}  // namespace keras_lowbit
