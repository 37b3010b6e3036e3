#include "layers/conv2d_tiles.h"

#include <algorithm>

#include "core/per_thread.h"

namespace keras_lowbit {
namespace {

// A stretch of tiles reads about so much of the image: it stays in the second-level cache while panels pass by.
constexpr int64_t kStretchBytes = 256 << 10;
// Several threads share so many tasks, if a stretch keeps some tiles.
constexpr int64_t kSharedTasks = 16, kFewestTiles = 4;
// What a thread does in a nanosecond, about.
constexpr int64_t kProductsPerNanosecond = 1000;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct TileGrid {
  int64_t blocks, stretch, stretches;  // tiles of a stretch: an even number
};

TileGrid MakeTileGrid(const ConvPlan& plan, bool shared) {
  const TileImage& view = plan.tiles.view;
  const int64_t blocks = plan.sizes.oc_blocks;
  const int64_t read = std::min(view.pixel_bytes, view.slice_steps * kTileDepth);  // of a pixel, in a slice
  int64_t fit = std::max<int64_t>(kStretchBytes / (kTilePositions * read), kFewestTiles);
  if (shared) fit = std::clamp<int64_t>(view.tiles * blocks / kSharedTasks, kFewestTiles, fit);
  const int64_t even = CeilDivide(view.tiles, CeilDivide(view.tiles, fit));
  const int64_t stretch = CeilDivide(even, 2) * 2;
  return {blocks, stretch, CeilDivide(view.tiles, stretch)};
}

TileTask TaskAt(const ConvPlan& plan, const GroupData& data, const TileGrid& grid, int64_t index) {
  const int64_t block = index / grid.stretches;
  TileTask task;
  task.weights = BlockCodes(plan, data, block);
  task.scales = BlockScales(plan, data, block);
  task.constants = data.constants + block;
  task.first_channel = data.first_channel + block * kBlockChannels;
  task.channels = std::min<int64_t>(kBlockChannels, plan.channels - block * kBlockChannels);
  task.first_tile = index % grid.stretches * grid.stretch;
  task.tiles = std::min(grid.stretch, plan.tiles.view.tiles - task.first_tile);
  return task;
}

// Of one thread.
struct TileScratch {
  Scratch panels, totals, tasks;
};

void RunTasks(const ConvPlan& plan, const GroupData& data, TileArgs args, const TileGrid& grid, int64_t begin,
              int64_t end) {
  static const PerThread<TileScratch> scratches;
  TileScratch& scratch = scratches.Get();
  args.panels = scratch.panels.Get<int8_t>(args.image.panel_bytes() * (kBlockChannels / kPanelChannels));
  args.totals = scratch.totals.Get<int32_t>(TotalsOf(args.image, grid.stretch));
  auto* tasks = scratch.tasks.Get<TileTask>(end - begin);
  for (int64_t i = begin; i < end; ++i) tasks[i - begin] = TaskAt(plan, data, grid, i);
  plan.kernel.tiles.run(args, tasks, end - begin);
}

bool IsAligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % kAlignment == 0; }

// The image of the call from the group's first channel on, where tiles can read it, or a copy.
const int8_t* TilePixels(const ConvPlan& plan, const int8_t* input, int32_t input_zero_point, Scratch* copy,
                         const ParallelFor& parallel) {
  if (plan.tiles.in_place && IsAligned(input)) return input;
  auto* pixels = copy->Get<int8_t>(plan.tiles.bytes());
  CopyToTiles(plan.tiles, input, input_zero_point, pixels, parallel);
  return pixels;
}

}  // namespace

void RunTiles(const ConvPlan& plan, const GroupData& data, const int8_t* input, int32_t input_zero_point, Scratch* copy,
              const ParallelFor& parallel) {
  TileArgs args;
  args.image = plan.tiles.view;
  args.image.tap_offsets = plan.tiles.tap_offsets.data();
  args.image.pixels = TilePixels(plan, input, input_zero_point, copy, parallel);
  args.ternary = plan.is_ternary;
  args.clusters = plan.clusters;
  args.epilogue = data.epilogue;
  const TileGrid grid = MakeTileGrid(plan, parallel != nullptr);
  const Work work = [&](int64_t begin, int64_t end) { RunTasks(plan, data, args, grid, begin, end); };
  const int64_t depth = args.image.taps * args.image.steps * kTileDepth;
  const int64_t products = grid.stretch * kTilePositions * depth * kBlockChannels;
  RunAll(parallel, grid.blocks * grid.stretches, (products / kProductsPerNanosecond) + depth / 4 + 1, work);
}

}  // namespace keras_lowbit
