#include "kernels/simd/x86_avx2.h"

namespace keras_lowbit {

// 4 x 2 totals, a pair of weights, a pair of activations: 16 registers with room for the products.
void Int8BlockAvx2(const BlockArgs& args) { RunInt8Block<Avx2, Int8Source<Avx2, 2>, 4>(args); }

}  // namespace keras_lowbit
