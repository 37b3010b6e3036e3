// Layers on the emulated GPU: the launchers of cuda/launch.h with loops for grids.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/conv_body.h"
#include "cuda/each.h"
#include "cuda/plan.h"
#include "cuda/row_body.h"
#include "test/emulated_block.h"

namespace keras_lowbit::cuda {

struct Emulation {
  int processors = 132;
  Instructions instructions;
  bool threaded = false;
};

template <WeightKind kKind>
void EmulateBlockOf(const ConvPlan& plan, GridPlace place, const Emulation& how) {
  const ConvArgs& a = plan.args;
  const auto run = [&](auto registers, int shared_words, const auto& body) {
    RunBlock<decltype(registers)>(place, how.instructions, how.threaded, shared_words, body);
  };
  switch (plan.path) {
    case ConvPath::kRow:
      return run(RowRegisters<kKind>(), RowTile<kKind>::kSharedWords, [&](auto& b) { RowBody<kKind>(b, a); });
    case ConvPath::kTile32:
      return run(ConvRegisters<1>(), ConvTile<kKind, 1>::kSharedWords, [&](auto& b) { ConvBody<kKind, 1>(b, a); });
    case ConvPath::kTile128:
      return run(ConvRegisters<4>(), ConvTile<kKind, 4>::kSharedWords, [&](auto& b) { ConvBody<kKind, 4>(b, a); });
  }
}

inline void EmulateBlock(const ConvPlan& plan, GridPlace place, const Emulation& how) {
  switch (plan.kind) {
    case WeightKind::kTernary:
      return EmulateBlockOf<WeightKind::kTernary>(plan, place, how);
    case WeightKind::kTernaryScaled:
      return EmulateBlockOf<WeightKind::kTernaryScaled>(plan, place, how);
    case WeightKind::kInt8:
      return EmulateBlockOf<WeightKind::kInt8>(plan, place, how);
  }
}

template <class Each>
void EmulateEach(const Each& each) {
  for (int64_t i = 0; i < each.count(); ++i) each(i);
}

inline Status EmulateConv(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call,
                          const Emulation& how) {
  ConvPlan plan;
  KLB_RETURN_IF_ERROR(PlanConv(shape, weights, call, how.processors, &plan));
  std::vector<int32_t> partials(plan.workspace_bytes / 4, 0x5A5A5A5A);
  plan.args.partials = partials.data();
  for (int z = 0; z < plan.grid[2]; ++z) {
    for (int y = 0; y < plan.grid[1]; ++y) {
      for (int x = 0; x < plan.grid[0]; ++x) EmulateBlock(plan, {x, y, z}, how);
    }
  }
  if (plan.args.slices > 1) EmulateEach(AddSlices{plan.args});
  return Status();
}

inline Status EmulateDepthwise(const ConvShape& shape, const int8_t* kernel, const ConvCall& call) {
  KLB_RETURN_IF_ERROR(CheckDepthwise(shape));
  ConvArgs args;
  KLB_RETURN_IF_ERROR(PlanWindow(shape, call, &args));
  EmulateEach(DepthwiseQuad{args, kernel, static_cast<int32_t>(shape.out_channels / shape.in_channels)});
  return Status();
}

inline Status EmulateMaxPool(const ConvShape& shape, const int8_t* input, int32_t padding_code, int32_t low,
                             int32_t high, int8_t* output) {
  ConvCall call;
  call.input = input;
  call.epilogue.type = OutputType::kInt32;
  ConvArgs args;
  KLB_RETURN_IF_ERROR(PlanWindow(shape, call, &args));
  EmulateEach(PoolQuad{args, output, padding_code, low, high});
  return Status();
}

}  // namespace keras_lowbit::cuda
