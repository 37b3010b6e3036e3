#include "kernels/simd/x86_avx512.h"

#include "kernels/simd/depthwise.h"
#include "kernels/simd/depthwise_registers.h"

namespace keras_lowbit {

void DepthwiseAvx512Vnni(const BlockArgs& args) {
  if (!RunDepthwiseInRegisters<Avx512>(args)) RunDepthwise<Avx512>(args);
}

}  // namespace keras_lowbit
