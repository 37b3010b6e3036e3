#include "kernels/simd/x86_avx2.h"

#include "kernels/simd/depthwise.h"
#include "kernels/simd/depthwise_registers.h"

namespace keras_lowbit {

void DepthwiseAvx2(const BlockArgs& args) {
  if (!RunDepthwiseInRegisters<Avx2>(args)) RunDepthwise<Avx2>(args);
}

}  // namespace keras_lowbit
