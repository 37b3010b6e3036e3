#include "kernels/simd/x86_avxvnni.h"

namespace keras_lowbit {

void TernaryBlockAvxVnni(const BlockArgs& args, const ClusterArgs& clusters) {
  RunTernaryBlock<AvxVnni, 2>(args, clusters);
}

void UnpackTernaryAvxVnni(const UnpackArgs& args) { Unpack<AvxVnni>(args); }

}  // namespace keras_lowbit
