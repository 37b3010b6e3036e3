#include "kernels/simd/x86_avx512.h"

namespace keras_lowbit {

// 6 x 4 totals, 4 weights, one activation and a constant fill the 32 registers.
void Int8BlockAvx512Vnni(const BlockArgs& args) { RunInt8Block<Avx512, Int8Source<Avx512, 4>, 6>(args); }

}  // namespace keras_lowbit
