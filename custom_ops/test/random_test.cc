// Random layers, ugly fills included, on every ISA target. KLB_SEED and KLB_CASES replay or lengthen a run.
#include <cstdio>

#include "test/random_layers.h"

int main() {
  using namespace keras_lowbit::test;
  const int64_t seed = FromEnvironment("KLB_SEED", 7), cases = FromEnvironment("KLB_CASES", 3000);
  for (int64_t i = 0; i < cases; ++i) {
    Random random(static_cast<uint32_t>(seed + i));
    const Layer layer = DrawLayer(random);
    if (layer.shape.output_size() > 20000) continue;
    CheckLayer(layer, random);
    if (i % 1000 == 999) std::printf("%lld layers\n", static_cast<long long>(i + 1));
  }
  return 0;
}
