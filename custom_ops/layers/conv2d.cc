// Convolutions and dense layers: checks and the loop over tasks; conv2d_plan.h chooses how, the arithmetic is in
// kernels/.
//
// The work is a grid of (block of 64 output channels) x (chunk of output pixels), chunks innermost. A ternary block is
// unpacked once for all the chunks that follow each other; a chunk's pointer table is kept for the blocks to come. So
// weights travel from memory in 2 bits and meet the activations as int8 from the second-level cache. Many pixels make
// several such grids, spans, so that the tables stay in that cache too.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/per_thread.h"
#include "layers/conv2d_plan.h"
#include "layers/conv2d_tiles.h"
#include "layers/epilogue.h"
#include "layers/indirection.h"
#include "layers/layers.h"
#include "layers/scratch.h"

namespace keras_lowbit {
namespace {

// A block of so few channels is unpacked sooner, beyond so many pixels: decoding computes all 64 channels.
constexpr int64_t kNarrowChannels = 32, kFewPixelsNarrow = 12;
// For ParallelFor's parts: what a thread does in a nanosecond, about, and the pixels that take as long as one.
constexpr int64_t kProductsPerNanosecond = 100, kFewestPixels = 2;

// One block of ternary codes as int8 weights, [tap][k_block][kInt8BlockBytes]: taps outermost, clusters inside.
void UnpackBlock(const ConvPlan& plan, const uint8_t* codes, const int8_t* scales, int8_t* weights) {
  UnpackArgs args{codes, 0, scales, nullptr};
  const WeightSizes& sizes = plan.sizes;
  const int64_t taps = plan.shape.taps();
  for (int64_t cluster = 0; cluster < sizes.clusters; ++cluster) {
    args.k_blocks = cluster + 1 == sizes.clusters ? sizes.last_k_blocks : sizes.cluster_k_blocks;
    for (int64_t tap = 0; tap < taps; ++tap) {
      args.weights = weights + (tap * sizes.tap_k_blocks + cluster * sizes.cluster_k_blocks) * kInt8BlockBytes;
      plan.kernel.ternary.unpack(args);
      args.codes += args.k_blocks * kTernaryBlockBytes;
      const bool next = plan.image.clusters.scales_per_tap || tap + 1 == taps;
      if (scales != nullptr && next) args.scales += kBlockChannels;
    }
  }
}

// Of one thread: pointer tables of a span, which of them are filled, and the weights of a block.
struct TaskScratch {
  Scratch rows, filled, weights;
};

// A place in the grid.
struct Task {
  int64_t span, block, chunk;
};

Task TaskAt(const Grid& grid, int64_t index) {
  const int64_t of_span = grid.span_chunks * grid.blocks, span = index / of_span;
  const int64_t chunks = std::min(grid.span_chunks, grid.chunks - span * grid.span_chunks);
  return {span, index % of_span / chunks, span * grid.span_chunks + index % of_span % chunks};
}

int64_t BlockChannels(const ConvPlan& plan, int64_t block) {
  return std::min<int64_t>(kBlockChannels, plan.channels - block * kBlockChannels);
}

Path BlockPath(const ConvPlan& plan, const GroupData& data, int64_t block) {
  const Path path = plan.kernel.path;
  const bool narrow = BlockChannels(plan, block) <= kNarrowChannels && plan.shape.out_pixels() > kFewPixelsNarrow;
  const bool unpacked = path == Path::kTernaryInRegisters && narrow && data.scales == nullptr;
  return unpacked ? Path::kTernaryUnpacked : path;
}

// The weights of a block as the kernel wants them.
const void* BlockWeights(const ConvPlan& plan, const GroupData& data, int64_t block, Scratch* scratch) {
  const uint8_t* codes = BlockCodes(plan, data, block);
  if (BlockPath(plan, data, block) != Path::kTernaryUnpacked) return codes;
  auto* weights = scratch->Get<int8_t>(plan.sizes.k_blocks * kInt8BlockBytes);
  UnpackBlock(plan, codes, BlockScales(plan, data, block), weights);
  return weights;
}

void RunChunk(const ConvPlan& plan, const GroupData& data, BlockArgs args, int64_t block) {
  args.constants = data.constants + block;
  args.first_channel = data.first_channel + block * kBlockChannels;
  args.channels = BlockChannels(plan, block);
  if (BlockPath(plan, data, block) != Path::kTernaryInRegisters) return plan.kernel.run(args);
  ClusterArgs clusters = plan.image.clusters;
  clusters.scales = BlockScales(plan, data, block);
  plan.kernel.ternary.run(args, clusters);
}

// The pointer table of a chunk, from the scratch of its span or filled.
const int8_t* const* ChunkRows(const ConvPlan& plan, const GroupData& data, const Task& task, const BlockArgs& args,
                               TaskScratch* scratch) {
  const Grid& grid = plan.grid;
  const int64_t entries = grid.chunk_pixels * args.taps, place = task.chunk % grid.span_chunks;
  const auto** rows = scratch->rows.Get<const int8_t*>(entries * grid.span_chunks) + place * entries;
  auto* filled = scratch->filled.Get<bool>(grid.span_chunks);
  if (!filled[place]) FillRows(plan.image.view, data.image, args.first_pixel, args.pixels, rows);
  filled[place] = true;
  return rows;
}

void RunTasks(const ConvPlan& plan, const GroupData& data, int64_t begin, int64_t end) {
  static const PerThread<TaskScratch> scratches;
  TaskScratch& scratch = scratches.Get();
  const Grid& grid = plan.grid;
  BlockArgs args;
  args.taps = plan.image.view.taps();
  args.k_blocks = plan.image.k_blocks;
  args.epilogue = data.epilogue;
  Task last = {-1, -1, -1};
  for (int64_t index = begin; index < end; ++index) {
    const Task task = TaskAt(grid, index);
    if (task.span != last.span) std::fill_n(scratch.filled.Get<bool>(grid.span_chunks), grid.span_chunks, false);
    if (task.span != last.span || task.block != last.block)
      args.weights = BlockWeights(plan, data, task.block, &scratch.weights);
    args.first_pixel = task.chunk * grid.chunk_pixels;
    args.pixels = std::min(grid.chunk_pixels, plan.shape.out_pixels() - args.first_pixel);
    args.tap_stride = args.pixels;
    args.rows = ChunkRows(plan, data, task, args, &scratch);
    RunChunk(plan, data, args, task.block);
    last = task;
  }
}

void RunGrid(const ConvPlan& plan, const GroupData& data, const ParallelFor& parallel) {
  const Work work = [&](int64_t begin, int64_t end) { RunTasks(plan, data, begin, end); };
  const int64_t pixels = std::max(plan.grid.chunk_pixels, kFewestPixels);
  const int64_t products = pixels * plan.sizes.k_blocks * kKBlock * kBlockChannels;
  // At least the time to read the weights.
  const int64_t cost = products / kProductsPerNanosecond + plan.sizes.k_blocks + 1;
  RunAll(parallel, plan.grid.chunks * plan.grid.blocks, cost, work);
}

// How a call runs, as far as shapes and zero point tell.
struct CallPlan {
  ConvPlan conv;
  std::vector<int8_t> padding;  // one pixel of zero points
};

// All that it depends on, and the checks before it.
struct PlanKey {
  ConvShape shape;
  int64_t isa, shared, input_zero_point, layout, cluster_size, scales_per_tap;
  int64_t has_codes, codes_bytes, has_scales, scales_bytes, has_sums, sums_count;
};
static_assert(std::has_unique_object_representations_v<PlanKey>, "compared byte by byte");

// The image of the call from the group's first channel on, or its padded copy, for which `memory` is.
ImageView ImageOf(const CallPlan& call, int64_t group, const int8_t* input, Scratch* memory,
                  const ParallelFor& parallel) {
  const ConvPlan& plan = call.conv;
  const ConvShape& s = plan.shape;
  const int8_t* pixels = input + group * (s.in_channels / s.groups);
  if (!plan.image.copies) return {pixels, s.in_channels, s.in_width, call.padding.data()};
  auto* copy = memory->Get<int8_t>(plan.image.copy.size());
  CopyPadded(plan.image.copy, pixels, call.padding[0], copy, parallel);
  const int64_t depth = plan.sizes.tap_k_blocks * kKBlock;
  return {copy, depth, plan.image.copy.width(), call.padding.data()};
}

Status CheckCall(const ConvShape& shape, const PackedWeights& weights, int32_t input_zero_point) {
  KLB_RETURN_IF_ERROR(CheckConv(shape));
  KLB_RETURN_IF_ERROR(CheckWeights(shape, weights));
  if (-128 <= input_zero_point && input_zero_point <= 127) return Status();
  return Status::Error("the input's zero point is " + std::to_string(input_zero_point) +
                       "; expected an int8 code, -128 to 127");
}

// The plan, from the cache if the sizes are those of the call before, which were checked then; null: no output.
Status GetPlan(const ConvShape& shape, const PackedWeights& weights, int32_t input_zero_point, bool shared,
               LayerCache* cache, std::shared_ptr<const CallPlan>* plan) {
  Isa isa;
  KLB_RETURN_IF_ERROR(ActiveIsa(&isa));
  const PlanKey key = {shape,
                       static_cast<int64_t>(isa),
                       shared,
                       input_zero_point,
                       static_cast<int64_t>(weights.layout),
                       weights.cluster_size,
                       weights.scales_per_tap,
                       weights.codes != nullptr,
                       weights.codes_bytes,
                       weights.scales != nullptr,
                       weights.scales_bytes,
                       weights.sums != nullptr,
                       weights.sums_count};
  const KeptResult::Pieces pieces = {{{&key, sizeof key}}};
  if (cache != nullptr) *plan = std::static_pointer_cast<const CallPlan>(cache->plan.Find(pieces));
  if (*plan != nullptr) return Status();
  KLB_RETURN_IF_ERROR(CheckCall(shape, weights, input_zero_point));
  if (shape.out_pixels() == 0) return Status();
  const auto made = std::make_shared<CallPlan>();
  made->conv = PlanConv(isa, shape, weights, shared);
  made->padding.assign(made->conv.sizes.tap_k_blocks * kKBlock, static_cast<int8_t>(input_zero_point));
  if (cache != nullptr) cache->plan.Keep(pieces, made);
  *plan = made;
  return Status();
}

Status GetConvConstants(const ConvPlan& plan, const PackedWeights& weights, int32_t input_zero_point,
                        const Epilogue& epilogue, LayerCache* cache, std::shared_ptr<const Constants>* constants) {
  const ConvShape& shape = plan.shape;
  const int64_t max_abs_weight = weights.layout == WeightLayout::kTernary2Bit && weights.scales == nullptr ? 2 : 128;
  const ConstantsSource source = {epilogue,
                                  shape.out_channels,
                                  shape.groups,
                                  kBlockChannels,
                                  MaxAbsAccumulator(shape, max_abs_weight),
                                  weights.sums,
                                  input_zero_point + plan.kernel.activation_offset};
  return GetConstants(source, cache, constants);
}

}  // namespace

Status Conv2D(const ConvShape& shape, const PackedWeights& weights, const int8_t* input, int32_t input_zero_point,
              const Epilogue& epilogue, void* output, const ParallelFor& parallel, LayerCache* cache) {
  std::shared_ptr<const CallPlan> call;
  KLB_RETURN_IF_ERROR(GetPlan(shape, weights, input_zero_point, parallel != nullptr, cache, &call));
  KLB_RETURN_IF_ERROR(CheckEpilogue(epilogue));
  if (call == nullptr) return Status();
  const ConvPlan& plan = call->conv;
  std::shared_ptr<const Constants> constants;
  KLB_RETURN_IF_ERROR(GetConvConstants(plan, weights, input_zero_point, epilogue, cache, &constants));
  const PreparedEpilogue prepared = PrepareEpilogue(epilogue, *constants, shape.out_channels, output);
  Scratch memory;
  for (int64_t group = 0; group < shape.groups; ++group) {
    GroupData data;
    data.codes = static_cast<const uint8_t*>(weights.codes) + group * (plan.sizes.codes_bytes_total / shape.groups);
    if (weights.scales != nullptr)
      data.scales = weights.scales + group * (plan.sizes.scales_bytes_total / shape.groups);
    data.constants = constants->blocks.data() + group * plan.sizes.oc_blocks;
    data.epilogue = &prepared;
    data.first_channel = group * plan.channels;
    if (plan.kernel.path == Path::kTiles) {
      const int8_t* pixels = input + group * (shape.in_channels / shape.groups);
      RunTiles(plan, data, pixels, input_zero_point, &memory, parallel);
      continue;
    }
    data.image = ImageOf(*call, group, input, &memory, parallel);
    RunGrid(plan, data, parallel);
  }
  return Status();
}

Status Dense(const DenseShape& shape, const PackedWeights& weights, const int8_t* input, int32_t input_zero_point,
             const Epilogue& epilogue, void* output, const ParallelFor& parallel, LayerCache* cache) {
  return Conv2D(AsConv(shape), weights, input, input_zero_point, epilogue, output, parallel, cache);
}

}  // namespace keras_lowbit
