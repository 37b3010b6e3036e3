#include "kernels/simd/x86_avx512.h"

namespace keras_lowbit {

// About 24 totals, their weights, one activation and a constant fill the 32 registers. A block of few channels takes
// fewer vectors and more pixels at once instead of multiplying padding.
void Int8BlockAvx512Vnni(const BlockArgs& args) {
  if (args.channels > 48) return RunInt8Block<Avx512, Int8Source<Avx512, 4>, 6>(args);
  if (args.channels > 32) return RunInt8Block<Avx512, Int8Source<Avx512, 3>, 8>(args);
  if (args.channels > 16) return RunInt8Block<Avx512, Int8Source<Avx512, 2>, 12>(args);
  RunInt8Block<Avx512, Int8Source<Avx512, 1>, 12>(args);
}

}  // namespace keras_lowbit
