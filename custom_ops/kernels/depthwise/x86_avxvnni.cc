#include "kernels/simd/x86_avxvnni.h"
#include "kernels/simd/depthwise.h"

namespace keras_lowbit {

void DepthwiseAvxVnni(const BlockArgs& args) { RunDepthwise<AvxVnni>(args); }

}  // namespace keras_lowbit
