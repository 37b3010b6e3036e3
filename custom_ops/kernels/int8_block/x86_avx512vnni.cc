#include "kernels/simd/x86_avx512.h"

namespace keras_lowbit {

// 24 totals, their weights, one activation and a constant fill the 32 registers, and six addresses half of the others:
// eight rows would move those to and fro. A block of few channels takes fewer vectors instead of multiplying padding.
void Int8BlockAvx512Vnni(const BlockArgs& args) {
  if (args.channels > 48) return RunInt8Block<Avx512, Int8Source<Avx512, 4>, 6>(args);
  if (args.channels > 32) return RunInt8Block<Avx512, Int8Source<Avx512, 3>, 6>(args);
  if (args.channels > 16) return RunInt8Block<Avx512, Int8Source<Avx512, 2>, 6>(args);
  RunInt8Block<Avx512, Int8Source<Avx512, 1>, 6>(args);
}

}  // namespace keras_lowbit
