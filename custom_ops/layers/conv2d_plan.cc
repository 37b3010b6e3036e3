#include "layers/conv2d_plan.h"

#include <algorithm>

#include "layers/indirection.h"

namespace keras_lowbit {
namespace {

// With scales unpacking a block first pays beyond so few pixels: every cluster ends with a multiplication of its sums.
constexpr int64_t kFewPixelsWithScales = 12;
// The limit of a chunk of few taps, whose table would hold thousands of pixels.
constexpr int64_t kMaxChunkPixels = 480;
// Whole tiles of 2, 3, 4, 6 or 12 pixels.
constexpr int64_t kTilePixels = 12;
constexpr int64_t kSpanEntries = 32768;  // of the tables of a span
// Several threads share so many tasks, if a chunk keeps some tiles.
constexpr int64_t kSharedTasks = 16, kFewestPixels = 24;
// A bordered copy may be twice the image, and for a small image so many pixels more.
constexpr int64_t kSmallImage = 65536;
// A copy for tiles has at most so many times the pixels of input and output, and a plan lists so many taps.
constexpr int64_t kMostCopied = 2, kMostTileTaps = 4096;

Path PathOf(const ConvShape& shape, const PackedWeights& weights, int64_t few_pixels) {
  if (weights.layout == WeightLayout::kInt8) return Path::kInt8;
  const int64_t few = weights.scales == nullptr ? few_pixels : kFewPixelsWithScales;
  return shape.out_pixels() <= few ? Path::kTernaryInRegisters : Path::kTernaryUnpacked;
}

KernelChoice ChooseKernel(Isa isa, const ConvShape& shape, const PackedWeights& weights) {
  const Int8BlockKernel int8 = SelectInt8Block(isa);
  const TernaryBlockKernel ternary = SelectTernaryBlock(isa);
  const Path path = PathOf(shape, weights, ternary.few_pixels);
  // With scales multiplied in, unpacked weights are int8, no longer -1, 0, 1.
  const bool as_int8 = path == Path::kInt8 || (path == Path::kTernaryUnpacked && weights.scales != nullptr);
  if (as_int8) return {path, int8.run, ternary, int8.activation_offset};
  return {path, ternary.run_unpacked, ternary, ternary.activation_offset};
}

ClusterArgs ClustersOf(const WeightSizes& sizes, const PackedWeights& weights) {
  return {sizes.clusters, sizes.cluster_k_blocks, sizes.last_k_blocks, nullptr, weights.scales_per_tap};
}

// Whether tiles of so many positions pay: they multiply those between rows too, and depths and channels that are not
// full.
bool IsWorthTiles(const ConvPlan& plan, const TileSizes& sizes) {
  const auto up = [](int64_t a, int64_t b) { return 1.0 * ((a + b - 1) / b * b); };
  const ConvShape& s = plan.shape;
  const double depth = up(plan.sizes.tap_k_blocks, kTileKBlocks) * kKBlock;
  const double tiles = std::max<double>(sizes.positions, kTilePositions) * depth * up(plan.channels, kFieldChannels);
  const double own = 1.0 * s.out_pixels() * (s.in_channels / s.groups) * plan.channels;
  const double pixels = 1.0 * s.out_pixels() + 1.0 * s.batch * s.in_height * s.in_width + kSmallImage;
  return tiles <= plan.kernel.tiles.limits.most_products * own && sizes.copied <= kMostCopied * pixels;
}

// Whether the layer runs on matrix tiles, with the plan for it.
bool ChooseTiles(ConvPlan* plan, const PackedWeights& weights) {
  const TileBlockKernel& kernel = plan->kernel.tiles;
  if (kernel.run == nullptr || plan->shape.out_pixels() < kernel.limits.fewest_pixels) return false;
  if (plan->shape.taps() > kMostTileTaps) return false;
  if (!IsWorthTiles(*plan, PlanTileAxes(plan->shape, &plan->tiles))) return false;
  PlanTileImage(plan->shape, weights, plan->sizes, kernel.limits, &plan->tiles);
  plan->kernel.path = Path::kTiles;
  return true;
}

// Whether a pixel's channels can be read where they are: every cluster starts at, and ends on, a multiple of 4.
bool IsReadInPlace(const ConvShape& shape, const WeightSizes& sizes) {
  return sizes.tap_k_blocks * kKBlock == shape.in_channels / shape.groups;
}

// Whether a row of the kernel can be one tap of a bordered copy: nothing between its pixels, their weights next to
// each other too, and borders that do not dwarf the image.
bool HasWholeRows(const ConvShape& s, const WeightSizes& sizes, const PackedWeights& weights, Path path,
                  const PaddedImage& image) {
  const bool one_factor = sizes.clusters == 1 && !weights.scales_per_tap;
  const bool in_order = one_factor || path != Path::kTernaryInRegisters;
  const int64_t pixels = s.in_height * s.in_width + kSmallImage;
  return s.dilation_width == 1 && in_order && image.height() < 2 * pixels / image.width();
}

PaddedImage CopyOf(const ConvShape& shape, const WeightSizes& sizes, const PackedWeights& weights) {
  const int64_t channels = shape.in_channels / shape.groups;
  const int64_t cluster = weights.cluster_size > 0 ? std::min(weights.cluster_size, channels) : channels;
  return {shape, channels, cluster, sizes.cluster_k_blocks * kKBlock, sizes.tap_k_blocks * kKBlock};
}

// The convolution on a bordered copy whose taps are whole rows of the kernel.
void ViewWholeRows(ImagePlan* plan) {
  ConvShape& view = plan->view;
  plan->k_blocks *= view.kernel_width;
  plan->clusters.cluster_k_blocks *= view.kernel_width;  // both read only where one cluster is all
  plan->clusters.last_k_blocks *= view.kernel_width;
  view.in_height = plan->copy.height();
  view.in_width = plan->copy.width() - view.kernel_width + 1;  // where a row of the kernel may begin
  view.kernel_width = 1;
  view.pad_top = view.pad_bottom = view.pad_left = view.pad_right = 0;
}

ImagePlan PlanImage(const ConvShape& shape, const WeightSizes& sizes, const PackedWeights& weights, Path path) {
  ImagePlan plan;
  plan.view = shape;
  plan.k_blocks = sizes.tap_k_blocks;
  plan.clusters = ClustersOf(sizes, weights);
  plan.copies = !IsReadInPlace(shape, sizes);
  if (!plan.copies) return plan;
  plan.copy = CopyOf(shape, sizes, weights);
  if (HasWholeRows(shape, sizes, weights, path, plan.copy)) {
    ViewWholeRows(&plan);
  } else {
    ConvShape& copied = plan.copy.shape;
    copied.pad_top = copied.pad_bottom = copied.pad_left = copied.pad_right = 0;
  }
  return plan;
}

Grid MakeGrid(int64_t pixels, int64_t taps, int64_t blocks, bool shared) {
  const auto ceil_divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t fit = std::clamp<int64_t>(kTableEntries / taps, kFewestPixels, kMaxChunkPixels);
  if (shared) fit = std::clamp<int64_t>(pixels * blocks / kSharedTasks, kFewestPixels, fit);
  const int64_t even = ceil_divide(pixels, ceil_divide(pixels, fit));
  Grid grid;
  grid.blocks = blocks;
  grid.chunk_pixels = std::min(ceil_divide(even, kTilePixels) * kTilePixels, pixels);
  grid.chunks = ceil_divide(pixels, grid.chunk_pixels);
  grid.span_chunks = std::min(std::max<int64_t>(kSpanEntries / (grid.chunk_pixels * taps), 1), grid.chunks);
  return grid;
}

}  // namespace

ConvPlan PlanConv(Isa isa, const ConvShape& shape, const PackedWeights& weights, bool shared) {
  ConvPlan plan;
  plan.shape = shape;
  plan.sizes = WeightSizesOf(shape, weights);
  plan.channels = shape.out_channels / shape.groups;
  plan.is_ternary = weights.layout == WeightLayout::kTernary2Bit;
  plan.clusters = ClustersOf(plan.sizes, weights);
  plan.kernel.tiles = SelectTileBlock(isa);
  if (ChooseTiles(&plan, weights)) return plan;
  plan.kernel = ChooseKernel(isa, shape, weights);
  plan.image = PlanImage(shape, plan.sizes, weights, plan.kernel.path);
  plan.grid = MakeGrid(shape.out_pixels(), plan.image.view.taps(), plan.sizes.oc_blocks, shared);
  return plan;
}

}  // namespace keras_lowbit
