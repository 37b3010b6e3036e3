#include "kernels/simd/arm_neon.h"
#include "kernels/simd/depthwise.h"

namespace keras_lowbit {

void DepthwiseNeon(const BlockArgs& args) { RunDepthwise<ArmNeon>(args); }

}  // namespace keras_lowbit
