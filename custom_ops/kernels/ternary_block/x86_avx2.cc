#include "kernels/simd/x86_avx2_narrow.h"

namespace keras_lowbit {

void TernaryBlockAvx2(const BlockArgs& args, const ClusterArgs& clusters) {
  RunTernaryBlock<Avx2Narrow, 2>(args, clusters);
}

void UnpackTernaryAvx2(const UnpackArgs& args) { Unpack<Avx2Narrow>(args); }

// 3 x 4 sums, one activation, one product: 16 registers.
void TernaryUnpackedAvx2(const BlockArgs& args) { RunInt8Block<Avx2Narrow, Int8Source<Avx2Narrow, 4>, 3>(args); }

}  // namespace keras_lowbit
