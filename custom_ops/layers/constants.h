// The constants of a layer's epilogue, in the order in which kernels read them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/api.h"
#include "kernels/output_stage.h"
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
  OutputStage::Fast fast = OutputStage::Fast::kNo;  // but for the residual
  bool has_lines = false, seeks_lines = false;      // seeks: they were looked for
  std::vector<ChannelBlock> blocks;
};

Status CheckShift(const char* name, int32_t shift);

// An error for shifts out of range. Lines are looked for where `with_lines`: some 20 microseconds a channel.
Status MakeConstants(const ConstantsSource& source, bool with_lines, Constants* constants);

// All that constants depend on: `source`, what stands for the sums of its weights, and one more number of the caller's.
// `numbers` is written, and must live as long.
using ConstantNumbers = std::array<int64_t, 10>;
LayerCache::Pieces PiecesOf(const ConstantsSource& source, LayerCache::Piece weights, int64_t more,
                            ConstantNumbers* numbers);

// From the cache, if there is one and nothing has changed. Lines are looked for when the same constants come again: a
// kernel that several layers share, as TensorFlow's eager ones, forms them anew each time.
Status GetConstants(const ConstantsSource& source, LayerCache* cache, std::shared_ptr<const Constants>* constants);

}  // namespace keras_lowbit
