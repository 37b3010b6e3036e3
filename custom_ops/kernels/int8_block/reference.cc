// The contract, line by line.
#include "kernels/int8_block/int8_block.h"

namespace keras_lowbit {

void Int8BlockReference(const BlockArgs& args) {
  const auto* weights = static_cast<const int8_t*>(args.weights);
  for (int64_t p = 0; p < args.pixels; ++p) {
    uint32_t total[64];
    for (int c = 0; c < 64; ++c) total[c] = args.constants->init[c];
    for (int64_t tap = 0; tap < args.taps; ++tap) {
      const int8_t* x = args.rows[tap * args.tap_stride + p] + args.channel_offset;
      for (int64_t g = 0; g < args.groups; ++g) {
        const int8_t* w = weights + (tap * args.groups + g) * 256;
        for (int c = 0; c < 64; ++c) {
          for (int i = 0; i < 4; ++i) total[c] += x[4 * g + i] * w[4 * c + i];
        }
      }
    }
    args.output->finish(*args.output, reinterpret_cast<const int32_t*>(total), args.first_pixel + p, args.first_channel,
                        1, args.channels);
  }
}

}  // namespace keras_lowbit
