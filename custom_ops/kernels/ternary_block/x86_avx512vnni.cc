#include "kernels/simd/x86_avx512.h"

namespace keras_lowbit {

void TernaryBlockAvx512Vnni(const BlockArgs& args, const ClusterArgs& clusters) {
  RunTernaryBlock<Avx512, 5>(args, clusters);
}

void UnpackTernaryAvx512Vnni(const UnpackArgs& args) { Unpack<Avx512>(args); }

}  // namespace keras_lowbit
