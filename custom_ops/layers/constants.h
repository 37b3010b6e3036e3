// The constants of a layer's epilogue, in the order in which kernels read them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/epilogue.h"
#include "core/status.h"
#include "kernels/prepared_epilogue.h"
#include "layers/layer_cache.h"

namespace keras_lowbit {

// What they are made from.
struct ConstantsSource {
  const Epilogue& epilogue;
  int64_t out_channels, groups, block_channels;  // each group has its own blocks of so many channels
  int64_t max_abs_total;                         // bounds |total| without the bias
  const int32_t* sums;                           // of weights: [groups][blocks of a group][block_channels]
  int32_t correction;                            // so many times a channel's sum comes off its total

  int64_t channels() const { return out_channels / groups; }
  int64_t blocks() const { return (channels() + block_channels - 1) / block_channels; }  // of one group
};

struct Constants {
  PreparedEpilogue::Fast fast = PreparedEpilogue::Fast::kNo;  // but for the residual
  bool has_fp32 = false, seeks_fp32 = false;                  // seeks: it was looked for
  std::vector<ChannelBlock> blocks;
};

Status CheckShift(const char* name, int32_t shift);

// An error for shifts out of range. Float32 parameters are looked for where `with_fp32`: some 20 microseconds a
// channel.
Status MakeConstants(const ConstantsSource& source, bool with_fp32, Constants* constants);

// All that constants depend on: `source`, what stands for the sums of its weights, and one more number of the caller's.
// `numbers` is written, and must live as long.
using ConstantNumbers = std::array<int64_t, 10>;
KeptResult::Pieces PiecesOf(const ConstantsSource& source, KeptResult::Piece weights, int64_t more,
                            ConstantNumbers* numbers);

// From the cache, if there is one and nothing has changed. Float32 parameters are looked for when the same constants
// come again: a kernel that several layers share, as TensorFlow's eager ones, forms them anew each time.
Status GetConstants(const ConstantsSource& source, LayerCache* cache, std::shared_ptr<const Constants>* constants);

}  // namespace keras_lowbit
