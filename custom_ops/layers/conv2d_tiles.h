// Convolutions on matrix tiles (kernels/tile_block): which layers, and their tasks.
#pragma once

#include <cstdint>

#include "layers/conv2d_plan.h"

namespace keras_lowbit {

// One group's blocks of channels x stretches of tiles, stretches innermost. copy: memory for the image where it has to
// be laid out.
void RunTiles(const ConvPlan& plan, const GroupData& data, const int8_t* input, int32_t input_zero_point, Scratch* copy,
              const ParallelFor& parallel);

}  // namespace keras_lowbit
