#include "kernels/simd/x86_avxvnni.h"

#include "kernels/simd/depthwise.h"
#include "kernels/simd/depthwise_registers.h"

namespace keras_lowbit {

void DepthwiseAvxVnni(const BlockArgs& args) {
  if (!RunDepthwiseInRegisters<AvxVnni>(args)) RunDepthwise<AvxVnni>(args);
}

}  // namespace keras_lowbit
