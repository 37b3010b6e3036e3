// Convolutions and dense layers: checks, path, blocking; the arithmetic is in kernels/.
//
// The work is a grid of (block of 64 output channels) x (chunk of output pixels), chunks innermost. A ternary block is
// unpacked once for all the chunks that follow each other; a chunk's pointer table is kept for the blocks to come. So
// weights travel from memory in 2 bits and meet the activations as int8 from the second-level cache. Many pixels make
// several such grids, spans, so that the tables stay in that cache too.
#include <algorithm>
#include <cstring>

#include "kernels/int8_block/int8_block.h"
#include "kernels/ternary_block/ternary_block.h"
#include "layers/epilogue.h"
#include "layers/indirection.h"
#include "layers/layers.h"
#include "layers/padded_image.h"
#include "layers/scratch.h"

namespace keras_lowbit {
namespace {

enum class Path { kInt8, kTernaryUnpacked, kTernaryInRegisters };

// Up to this many pixels a block of ternary weights is decoded at every use; beyond, unpacking it first pays. Sooner
// with scales: every cluster then ends with a multiplication of its sums.
constexpr int64_t kFewPixels = 64, kFewPixelsWithScales = 12, kFewPixelsNarrow = 12, kNarrowChannels = 32;
// The limit of a chunk of few taps, whose table would hold thousands of pixels.
constexpr int64_t kMaxChunkPixels = 480;
// Whole tiles of 2, 3, 4, 6 or 12 pixels.
constexpr int64_t kTilePixels = 12;
constexpr int64_t kSpanEntries = 32768;  // of the tables of a span
// A bordered copy may be twice the image, and for a small image so many pixels more.
constexpr int64_t kSmallImage = 65536;
// What a thread does in a nanosecond, about: for ParallelFor's parts.
constexpr int64_t kProductsPerNanosecond = 100;
// Several threads share so many tasks, if a chunk keeps some tiles.
constexpr int64_t kSharedTasks = 16, kFewestPixels = 24;

// Everything that is the same for all tasks of one group of one call.
struct Plan {
  ConvShape shape;
  WeightSizes sizes;
  Path path = Path::kInt8;
  void (*run)(const BlockArgs& args) = nullptr;
  TernaryBlockKernel ternary = {};
  int32_t activation_offset = 0;
  int64_t chunk_pixels = 0, chunks = 0, span_chunks = 0;
  bool copies = false;
  PaddedImage copy;
  ImageView image;
  ConvShape view;        // the convolution as the pointer table sees it: of a padded copy, a kernel row is one tap
  int64_t k_blocks = 0;  // of one tap of `view`
  const uint8_t* codes = nullptr;
  ClusterArgs clusters;
  const ChannelBlock* constants = nullptr;
  const PreparedEpilogue* epilogue = nullptr;
  int64_t first_channel = 0;  // of the group, in the output
  int64_t channels = 0;       // output channels of the group
};

Path PathOf(const ConvShape& shape, const PackedWeights& weights) {
  if (weights.layout == WeightLayout::kInt8) return Path::kInt8;
  const int64_t few = weights.scales == nullptr ? kFewPixels : kFewPixelsWithScales;
  return shape.out_pixels() <= few ? Path::kTernaryInRegisters : Path::kTernaryUnpacked;
}

void ChooseKernel(Isa isa, const PackedWeights& weights, Plan* plan) {
  const Int8BlockKernel int8 = SelectInt8Block(isa);
  plan->ternary = SelectTernaryBlock(isa);
  // With scales multiplied in, unpacked weights are int8, no longer -1, 0, 1.
  const bool as_int8 = plan->path == Path::kInt8 || (plan->path == Path::kTernaryUnpacked && weights.scales != nullptr);
  plan->run = as_int8 ? int8.run : plan->ternary.run_unpacked;
  plan->activation_offset = as_int8 ? int8.activation_offset : plan->ternary.activation_offset;
}

void ChooseChunks(bool shared, Plan* plan) {
  const int64_t pixels = plan->shape.out_pixels();
  int64_t fit = std::clamp<int64_t>(kTableEntries / plan->view.taps(), kFewestPixels, kMaxChunkPixels);
  if (shared) fit = std::clamp<int64_t>(pixels * plan->sizes.oc_blocks / kSharedTasks, kFewestPixels, fit);
  plan->chunks = (pixels + fit - 1) / fit;
  const int64_t even = (pixels + plan->chunks - 1) / plan->chunks;
  plan->chunk_pixels = std::min((even + kTilePixels - 1) / kTilePixels * kTilePixels, pixels);
  plan->chunks = (pixels + plan->chunk_pixels - 1) / plan->chunk_pixels;
  const int64_t entries = plan->chunk_pixels * plan->view.taps();
  plan->span_chunks = std::min(std::max<int64_t>(kSpanEntries / entries, 1), plan->chunks);
}

// Whether a row of the kernel can be one tap of a bordered copy: nothing between its pixels, their weights next to
// each other too, and borders that do not dwarf the image.
bool HasWholeRows(const Plan& plan, const PaddedImage& image) {
  const ConvShape& s = plan.shape;
  const bool one_factor = plan.sizes.clusters == 1 && !plan.clusters.scales_per_tap;
  const bool in_order = one_factor || plan.path != Path::kTernaryInRegisters;
  const int64_t pixels = s.in_height * s.in_width + kSmallImage;
  return s.dilation_width == 1 && in_order && image.height() < 2 * pixels / image.width();
}

// What to copy, and the convolution on the copy.
PaddedImage PlanCopy(const PackedWeights& weights, Plan* plan) {
  const int64_t channels = plan->shape.in_channels / plan->shape.groups;
  const int64_t cluster = weights.cluster_size > 0 ? std::min(weights.cluster_size, channels) : channels;
  PaddedImage image = {plan->shape, channels, cluster, plan->sizes.cluster_k_blocks * kKBlock,
                       plan->sizes.tap_k_blocks * kKBlock};
  ConvShape& view = plan->view;
  if (!HasWholeRows(*plan, image)) {
    image.shape.pad_top = image.shape.pad_bottom = image.shape.pad_left = image.shape.pad_right = 0;
    return image;
  }
  plan->k_blocks *= view.kernel_width;
  plan->clusters.cluster_k_blocks *= view.kernel_width;  // both read only where one cluster is all
  plan->clusters.last_k_blocks *= view.kernel_width;
  view.in_height = image.height();
  view.in_width = image.width() - view.kernel_width + 1;  // where a row of the kernel may begin
  view.kernel_width = 1;
  view.pad_top = view.pad_bottom = view.pad_left = view.pad_right = 0;
  return image;
}

// Whether a pixel's channels can be read where they are: every cluster starts at, and ends on, a multiple of 4.
bool IsReadInPlace(const ConvShape& shape, const WeightSizes& sizes) {
  return sizes.tap_k_blocks * kKBlock == shape.in_channels / shape.groups;
}

// One block of ternary codes as int8 weights, [tap][k_block][kInt8BlockBytes]: taps outermost, clusters inside.
void UnpackBlock(const Plan& plan, const uint8_t* codes, const int8_t* scales, int8_t* weights) {
  UnpackArgs args{codes, 0, scales, nullptr};
  const int64_t taps = plan.shape.taps();
  for (int64_t cluster = 0; cluster < plan.sizes.clusters; ++cluster) {
    const bool last = cluster + 1 == plan.sizes.clusters;
    args.k_blocks = last ? plan.sizes.last_k_blocks : plan.sizes.cluster_k_blocks;
    for (int64_t tap = 0; tap < taps; ++tap) {
      args.weights =
          weights + (tap * plan.sizes.tap_k_blocks + cluster * plan.sizes.cluster_k_blocks) * kInt8BlockBytes;
      plan.ternary.unpack(args);
      args.codes += args.k_blocks * kTernaryBlockBytes;
      const bool next = plan.clusters.scales_per_tap || tap + 1 == taps;
      if (scales != nullptr && next) args.scales += kBlockChannels;
    }
  }
}

// Of one thread: pointer tables of a span, which of them are filled, and the weights of a block.
struct TaskScratch {
  Scratch rows, filled, weights;
};

const int8_t* BlockScales(const Plan& plan, int64_t block) {
  if (plan.clusters.scales == nullptr) return nullptr;
  const int64_t factors = plan.sizes.clusters * (plan.clusters.scales_per_tap ? plan.shape.taps() : 1);
  return plan.clusters.scales + block * factors * kBlockChannels;
}

// A place in the grid.
struct Task {
  int64_t span, block, chunk;
};

Task TaskAt(const Plan& plan, int64_t index) {
  const int64_t of_span = plan.span_chunks * plan.sizes.oc_blocks, span = index / of_span;
  const int64_t chunks = std::min(plan.span_chunks, plan.chunks - span * plan.span_chunks);
  return {span, index % of_span / chunks, span * plan.span_chunks + index % of_span % chunks};
}

int64_t BlockChannels(const Plan& plan, int64_t block) {
  return std::min<int64_t>(kBlockChannels, plan.channels - block * kBlockChannels);
}

// A narrow block is unpacked sooner: decoding computes all 64 channels.
Path BlockPath(const Plan& plan, int64_t block) {
  const bool narrow = BlockChannels(plan, block) <= kNarrowChannels && plan.shape.out_pixels() > kFewPixelsNarrow;
  const bool unpacked = plan.path == Path::kTernaryInRegisters && narrow && plan.clusters.scales == nullptr;
  return unpacked ? Path::kTernaryUnpacked : plan.path;
}

// The weights of a block as the kernel wants them.
const void* BlockWeights(const Plan& plan, int64_t block, Scratch* scratch) {
  const bool int8 = plan.path == Path::kInt8;
  const uint8_t* codes = plan.codes + block * plan.sizes.k_blocks * (int8 ? kInt8BlockBytes : kTernaryBlockBytes);
  if (BlockPath(plan, block) != Path::kTernaryUnpacked) return codes;
  auto* weights = scratch->Get<int8_t>(plan.sizes.k_blocks * kInt8BlockBytes);
  UnpackBlock(plan, codes, BlockScales(plan, block), weights);
  return weights;
}

void RunChunk(const Plan& plan, BlockArgs args, int64_t block) {
  args.constants = plan.constants + block;
  args.first_channel = plan.first_channel + block * kBlockChannels;
  args.channels = BlockChannels(plan, block);
  if (BlockPath(plan, block) != Path::kTernaryInRegisters) return plan.run(args);
  ClusterArgs clusters = plan.clusters;
  clusters.scales = BlockScales(plan, block);
  plan.ternary.run(args, clusters);
}

// The pointer table of a chunk, from the scratch of its span or filled.
const int8_t* const* ChunkRows(const Plan& plan, const Task& task, const BlockArgs& args, TaskScratch* scratch) {
  const int64_t entries = plan.chunk_pixels * plan.view.taps(), place = task.chunk % plan.span_chunks;
  const auto** rows = scratch->rows.Get<const int8_t*>(entries * plan.span_chunks) + place * entries;
  auto* filled = scratch->filled.Get<bool>(plan.span_chunks);
  if (!filled[place]) FillRows(plan.view, plan.image, args.first_pixel, args.pixels, rows);
  filled[place] = true;
  return rows;
}

void RunTasks(const Plan& plan, int64_t begin, int64_t end) {
  static thread_local TaskScratch scratch;
  BlockArgs args;
  args.taps = plan.view.taps();
  args.k_blocks = plan.k_blocks;
  args.epilogue = plan.epilogue;
  Task last = {-1, -1, -1};
  for (int64_t index = begin; index < end; ++index) {
    const Task task = TaskAt(plan, index);
    if (task.span != last.span) std::fill_n(scratch.filled.Get<bool>(plan.span_chunks), plan.span_chunks, false);
    if (task.span != last.span || task.block != last.block)
      args.weights = BlockWeights(plan, task.block, &scratch.weights);
    args.first_pixel = task.chunk * plan.chunk_pixels;
    args.pixels = std::min(plan.chunk_pixels, plan.shape.out_pixels() - args.first_pixel);
    args.tap_stride = args.pixels;
    args.rows = ChunkRows(plan, task, args, &scratch);
    RunChunk(plan, args, task.block);
    last = task;
  }
}

void RunGrid(const Plan& plan, const ParallelFor& parallel) {
  const int64_t tasks = plan.chunks * plan.sizes.oc_blocks;
  const Work work = [&plan](int64_t begin, int64_t end) { RunTasks(plan, begin, end); };
  // At least the time to read the weights.
  const int64_t products = plan.chunk_pixels * plan.sizes.k_blocks * kKBlock * kBlockChannels;
  RunAll(parallel, tasks, products / kProductsPerNanosecond + plan.sizes.k_blocks + 1, work);
}

// Memory of a thread's calls: padding and, where channels do not come in fours, the padded image.
struct CallScratch {
  Scratch padding, image;
};

void RunGroup(Plan plan, const PackedWeights& weights, int64_t group, const int8_t* input, int32_t input_zero_point,
              CallScratch* scratch, const ParallelFor& parallel) {
  const ConvShape& s = plan.shape;
  plan.first_channel = group * plan.channels;
  plan.codes = static_cast<const uint8_t*>(weights.codes) + group * (plan.sizes.codes_bytes_total / s.groups);
  if (weights.scales != nullptr)
    plan.clusters.scales = weights.scales + group * (plan.sizes.scales_bytes_total / s.groups);
  plan.constants += group * plan.sizes.oc_blocks;
  const int64_t depth = plan.sizes.tap_k_blocks * kKBlock;
  auto* padding = scratch->padding.Get<int8_t>(depth);
  std::memset(padding, input_zero_point, depth);
  const int64_t channels = s.in_channels / s.groups;
  plan.image = {input + group * channels, s.in_channels, s.in_width, padding};
  if (plan.copies) {
    auto* copy = scratch->image.Get<int8_t>(plan.copy.size());
    CopyPadded(plan.copy, plan.image.pixels, input_zero_point, copy, parallel);
    plan.image = {copy, depth, plan.copy.width(), padding};
  }
  RunGrid(plan, parallel);
}

Status CheckCall(const ConvShape& shape, const PackedWeights& weights, int32_t input_zero_point,
                 const Epilogue& epilogue) {
  KLB_RETURN_IF_ERROR(CheckConv(shape));
  KLB_RETURN_IF_ERROR(CheckWeights(shape, weights));
  KLB_RETURN_IF_ERROR(CheckEpilogue(epilogue));
  if (-128 <= input_zero_point && input_zero_point <= 127) return Status();
  return Status::Error("the input's zero point is " + std::to_string(input_zero_point) +
                       "; expected an int8 code, -128 to 127");
}

// All but the constants and the output.
Plan MakePlan(Isa isa, const ConvShape& shape, const PackedWeights& weights, bool shared) {
  Plan plan;
  plan.shape = shape;
  plan.sizes = WeightSizesOf(shape, weights);
  plan.path = PathOf(shape, weights);
  plan.channels = shape.out_channels / shape.groups;
  plan.clusters = {plan.sizes.clusters, plan.sizes.cluster_k_blocks, plan.sizes.last_k_blocks, nullptr,
                   weights.scales_per_tap};
  plan.view = shape;
  plan.k_blocks = plan.sizes.tap_k_blocks;
  plan.copies = !IsReadInPlace(shape, plan.sizes);
  if (plan.copies) plan.copy = PlanCopy(weights, &plan);
  ChooseKernel(isa, weights, &plan);
  ChooseChunks(shared, &plan);
  return plan;
}

}  // namespace

Status Conv2D(const ConvShape& shape, const PackedWeights& weights, const int8_t* input, int32_t input_zero_point,
              const Epilogue& epilogue, void* output, const ParallelFor& parallel, LayerCache* cache) {
  KLB_RETURN_IF_ERROR(CheckCall(shape, weights, input_zero_point, epilogue));
  Isa isa;
  KLB_RETURN_IF_ERROR(ActiveIsa(&isa));
  if (shape.out_pixels() == 0) return Status();
  Plan plan = MakePlan(isa, shape, weights, parallel != nullptr);
  const int64_t max_abs_weight = weights.layout == WeightLayout::kTernary2Bit && weights.scales == nullptr ? 2 : 128;
  std::shared_ptr<const Constants> constants;
  const ConstantsSource source = {epilogue,
                                  shape.out_channels,
                                  shape.groups,
                                  kBlockChannels,
                                  MaxAbsAccumulator(shape, max_abs_weight),
                                  weights.sums,
                                  input_zero_point + plan.activation_offset};
  KLB_RETURN_IF_ERROR(GetConstants(source, cache, &constants));
  const PreparedEpilogue prepared = PrepareEpilogue(epilogue, *constants, shape.out_channels, output);
  plan.constants = constants->blocks.data();
  plan.epilogue = &prepared;
  CallScratch scratch;
  for (int64_t group = 0; group < shape.groups; ++group) {
    RunGroup(plan, weights, group, input, input_zero_point, &scratch, parallel);
  }
  return Status();
}

Status Dense(const DenseShape& shape, const PackedWeights& weights, const int8_t* input, int32_t input_zero_point,
             const Epilogue& epilogue, void* output, const ParallelFor& parallel, LayerCache* cache) {
  return Conv2D(AsConv(shape), weights, input, input_zero_point, epilogue, output, parallel, cache);
}

}  // namespace keras_lowbit
