// The contract, line by line.
#include "kernels/depthwise/depthwise.h"

namespace keras_lowbit {

void DepthwiseReference(const BlockArgs& args) {
  const auto* weights = static_cast<const int8_t*>(args.weights);
  for (int64_t p = 0; p < args.pixels; ++p) {
    uint32_t total[kBlockChannels] = {};
    for (int64_t c = 0; c < args.channels; ++c) {
      total[c] = args.constants->init[c];
      for (int64_t tap = 0; tap < args.taps; ++tap) {
        total[c] += args.rows[tap * args.tap_stride + p][args.channel_offset + c] *
                    weights[tap / kKBlock * kInt8BlockBytes + kKBlock * c + tap % kKBlock];
      }
    }
    args.epilogue->apply_scalar(*args.epilogue, reinterpret_cast<const int32_t*>(total), args.first_pixel + p,
                                args.first_channel, 1, args.channels);
  }
}

}  // namespace keras_lowbit
