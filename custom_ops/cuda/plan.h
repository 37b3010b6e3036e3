// Which kernel a layer runs, its grid and its arguments. Plain C++, no CUDA: the launchers and the emulation take it.
#pragma once

#include <cstdint>

#include "core/epilogue.h"
#include "core/packing.h"
#include "core/shapes.h"
#include "core/status.h"
#include "cuda/args.h"
#include "cuda/tile.h"

namespace keras_lowbit::cuda {

// kRow: one block reads a row and 64 channels' weights. Tiles: 128 pixels, or 32 where those would leave processors idle.
enum class ConvPath { kRow, kTile32, kTile128 };

struct ConvPlan {
  WeightKind kind = WeightKind::kTernary;
  ConvPath path = ConvPath::kTile128;
  int64_t grid[3] = {};         // 0 where there is nothing to do
  int64_t workspace_bytes = 0;  // of device memory, for the sums of several slices
  ConvArgs args;                // `partials` is left to the caller
};

// What a call hands over beside shape and weights; pointers are the device's.
struct ConvCall {
  const int8_t* input = nullptr;
  int32_t input_zero_point = 0;
  Epilogue epilogue;
  ChannelSteps steps;
  void* output = nullptr;
};

// processors: the device's multiprocessors. Errors for sizes and values that do not fit; shifts are on the device and not
// looked at: beyond -31 to 31 the codes are undefined.
Status PlanConv(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call, int processors,
                ConvPlan* plan);

// The arguments of a layer without packed weights: a depthwise one, or a maximum.
Status PlanWindow(const ConvShape& shape, const ConvCall& call, ConvArgs* args);

// The arguments of packing: those of a layer of one pixel.
Status PlanPacking(const ConvShape& shape, const PackedWeights& weights, ConvArgs* args);

}  // namespace keras_lowbit::cuda
