#include "kernels/simd/arm_neon.h"

namespace keras_lowbit {

void Int8BlockNeon(const BlockArgs& args) { RunInt8Block<ArmNeon, Int8Source<ArmNeon, 4>, 2>(args); }

}  // namespace keras_lowbit
