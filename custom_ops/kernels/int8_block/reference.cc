// The contract, line by line.
#include "kernels/int8_block/int8_block.h"

namespace keras_lowbit {

void Int8BlockReference(const BlockArgs& args) {
  const auto* weights = static_cast<const int8_t*>(args.weights);
  for (int64_t p = 0; p < args.pixels; ++p) {
    uint32_t total[kBlockChannels];
    for (int c = 0; c < kBlockChannels; ++c) total[c] = args.constants->init[c];
    for (int64_t tap = 0; tap < args.taps; ++tap) {
      const int8_t* x = args.rows[tap * args.tap_stride + p] + args.channel_offset;
      for (int64_t b = 0; b < args.k_blocks; ++b) {
        const int8_t* w = weights + (tap * args.k_blocks + b) * kInt8BlockBytes;
        for (int c = 0; c < kBlockChannels; ++c) {
          for (int i = 0; i < kKBlock; ++i) total[c] += x[kKBlock * b + i] * w[kKBlock * c + i];
        }
      }
    }
    args.epilogue->apply_scalar(*args.epilogue, reinterpret_cast<const int32_t*>(total), args.first_pixel + p,
                                args.first_channel, 1, args.channels);
  }
}

}  // namespace keras_lowbit
