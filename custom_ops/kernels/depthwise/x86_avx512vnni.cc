#include "kernels/simd/x86_avx512_depthwise.h"

#include "kernels/simd/depthwise.h"

namespace keras_lowbit {

void DepthwiseAvx512Vnni(const BlockArgs& args) {
  if (!RunDepthwiseInRegisters(args)) RunDepthwise<Avx512>(args);
}

}  // namespace keras_lowbit
