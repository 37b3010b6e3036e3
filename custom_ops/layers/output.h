// From an Epilogue to the constants and the OutputStage that kernels read.
#pragma once

#include <cstdint>

#include "core/api.h"
#include "kernels/output_stage.h"

namespace keras_lowbit {

// Pointers are there, zero points and clamps are int8 codes, low <= high.
Status CheckEpilogue(const Epilogue& epilogue, int64_t out_channels);

// `max_abs_total` bounds |total| without the bias.
OutputStage MakeOutputStage(const Epilogue& epilogue, int64_t out_channels, int64_t max_abs_total, void* output);

// The block of `channels` output channels from `channel` on; `correction` times a channel's sum of weights comes
// off its total. sums: of these channels.
void FillConstants(const Epilogue& epilogue, const OutputStage& stage, const int32_t* sums, int32_t correction,
                   int64_t channel, int64_t channels, ChannelBlock* block);

}  // namespace keras_lowbit
