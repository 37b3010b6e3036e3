#include "kernels/simd/arm_i8mm.h"

namespace keras_lowbit {

// 3 pairs of pixels by 8 pairs of channels, 3 activations and a few weights: 32 registers.
void Int8BlockI8mm(const BlockArgs& args) { RunInt8Block<ArmI8mm, Int8Source<ArmI8mm, 4>, 6>(args); }

}  // namespace keras_lowbit
