#include "kernels/simd/x86_avx2_narrow.h"

namespace keras_lowbit {

void TernaryBlockAvx2(const BlockArgs& args, const ClusterArgs& clusters) {
  RunTernaryBlock<Avx2Narrow, 2>(args, clusters);
}

void UnpackTernaryAvx2(const UnpackArgs& args) { Unpack<Avx2Narrow>(args); }

// 12 sums, their weights or products, one activation: 16 registers. Narrow blocks are higher instead of
// multiplying padding.
void TernaryUnpackedAvx2(const BlockArgs& args) {
  if (args.channels > 24) return RunInt8Block<Avx2Narrow, Int8Source<Avx2Narrow, 4>, 3>(args);
  if (args.channels > 16) return RunInt8Block<Avx2Narrow, Int8Source<Avx2Narrow, 3>, 4>(args);
  RunInt8Block<Avx2Narrow, Int8Source<Avx2Narrow, 2>, 6>(args);
}

}  // namespace keras_lowbit
