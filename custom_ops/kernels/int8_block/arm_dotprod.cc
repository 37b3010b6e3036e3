#include "kernels/simd/arm_dotprod.h"

namespace keras_lowbit {

void Int8BlockDotprod(const BlockArgs& args) { RunInt8Block<ArmDotprod, Int8Source<ArmDotprod, 4>, 5>(args); }

}  // namespace keras_lowbit
