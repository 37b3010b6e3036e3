#include "cuda/plan.h"

#include <algorithm>
#include <string>

#include "layers/epilogue.h"

namespace keras_lowbit::cuda {
namespace {

// Rows that are worth a block each; beyond, a tile of pixels reads the weights less often.
constexpr int64_t kFewRows = 4;
// k-blocks that a slice has at least, so that its sums are worth their way through memory.
constexpr int64_t kLeastSlice = 4 * kTileKBlocks;
// What indices are counted in: 32 bits, and room for the padding (args.h, kNowhere).
constexpr int64_t kMaxSide = int64_t{1} << 28, kMaxPixels = int64_t{1} << 30;
constexpr int64_t kMaxGridSide = 65535;  // of the grid's y and z

int64_t CeilDivide(int64_t a, int64_t b) { return a / b + (a % b != 0); }

Status CheckAtMost(const char* name, int64_t value, int64_t most) {
  if (value <= most) return Status();
  return Status::Error(std::string(name) + " is " + std::to_string(value) + "; the CUDA kernels take at most " +
                       std::to_string(most) + ": split the layer or the batch, or run it on the CPU");
}

Status CheckSizes(const ConvShape& s) {
  KLB_RETURN_IF_ERROR(CheckAtMost("a padded height", s.in_height + s.pad_top + s.pad_bottom, kMaxSide));
  KLB_RETURN_IF_ERROR(CheckAtMost("a padded width", s.in_width + s.pad_left + s.pad_right, kMaxSide));
  KLB_RETURN_IF_ERROR(CheckAtMost("the height of a window", s.kernel_height * s.dilation_height, kMaxSide));
  KLB_RETURN_IF_ERROR(CheckAtMost("the width of a window", s.kernel_width * s.dilation_width, kMaxSide));
  KLB_RETURN_IF_ERROR(CheckAtMost("the rows of a batch", s.batch * s.in_height, kMaxPixels));
  KLB_RETURN_IF_ERROR(CheckAtMost("the k of a window", s.taps() * s.in_channels, kMaxPixels));
  KLB_RETURN_IF_ERROR(CheckAtMost("the number of output channels", s.out_channels, kMaxSide));
  return CheckAtMost("the number of output pixels", s.out_pixels(), kMaxPixels);
}

Status CheckZeroPoint(int32_t zero_point) {
  if (-128 <= zero_point && zero_point <= 127) return Status();
  return Status::Error("the input's zero point is " + std::to_string(zero_point) +
                       "; expected an int8 code, -128 to 127");
}

Status CheckAlignment(const char* name, const void* data) {
  if (reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0) return Status();
  return Status::Error(std::string(name) + " of packed weights begin at no multiple of 16 bytes, as the CUDA kernels " +
                       "read them: copy them to memory of their own");
}

int32_t Narrow(int64_t value) { return static_cast<int32_t>(value); }

void FillWindow(const ConvShape& s, const ConvCall& call, ConvArgs* a) {
  a->in_height = Narrow(s.in_height), a->in_width = Narrow(s.in_width), a->in_channels = Narrow(s.in_channels);
  a->out_height = Narrow(s.out_height()), a->out_width = Narrow(s.out_width());
  a->kernel_width = Narrow(s.kernel_width);
  a->stride_height = Narrow(s.stride_height), a->stride_width = Narrow(s.stride_width);
  a->dilation_height = Narrow(s.dilation_height), a->dilation_width = Narrow(s.dilation_width);
  a->pad_top = Narrow(s.pad_top), a->pad_left = Narrow(s.pad_left), a->taps = Narrow(s.taps());
  a->group_inputs = Narrow(s.in_channels / s.groups), a->pixels = Narrow(s.out_pixels());
  a->input = call.input;
  a->out.epilogue = call.epilogue, a->out.steps = call.steps, a->out.input_zero_point = call.input_zero_point;
  a->out.out_channels = Narrow(s.out_channels), a->out.group_outputs = Narrow(s.out_channels / s.groups);
  a->out.output = call.output;
}

void FillWeights(const ConvShape& s, const PackedWeights& weights, ConvArgs* a) {
  const WeightSizes sizes = WeightSizesOf(s, weights);
  const bool clustered = weights.layout == WeightLayout::kTernary2Bit && weights.cluster_size > 0;
  a->oc_blocks = Narrow(sizes.oc_blocks), a->clusters = Narrow(sizes.clusters);
  a->cluster_channels = clustered ? Narrow(std::min<int64_t>(weights.cluster_size, a->group_inputs)) : a->group_inputs;
  a->cluster_k_blocks = Narrow(sizes.cluster_k_blocks), a->last_k_blocks = Narrow(sizes.last_k_blocks);
  a->k_blocks = a->slice_k_blocks = Narrow(sizes.k_blocks);
  a->scales_per_tap = weights.scales_per_tap;
  a->codes = static_cast<const uint8_t*>(weights.codes), a->scales = weights.scales;
  a->out.sums = weights.sums, a->out.group_sums = Narrow(sizes.oc_blocks * kBlockChannels);
  const bool aligned = reinterpret_cast<uintptr_t>(a->input) % kVectorBytes == 0;
  a->whole_vectors = aligned && a->in_channels % kVectorBytes == 0 && a->group_inputs % kVectorBytes == 0 &&
                     a->cluster_channels % kVectorBytes == 0;
}

void Slice(int64_t blocks, int processors, ConvPlan* plan) {
  ConvArgs& a = plan->args;
  // Rows wait for memory: several blocks a processor hide it.
  const int64_t wanted = processors * (plan->path == ConvPath::kRow ? 4 : 1) / std::max<int64_t>(blocks, 1);
  const int64_t slices = std::max<int64_t>(std::min<int64_t>(wanted, a.k_blocks / kLeastSlice), 1);
  a.slice_k_blocks = Narrow(CeilDivide(CeilDivide(a.k_blocks, slices), kTileKBlocks) * kTileKBlocks);
  a.slices = Narrow(CeilDivide(a.k_blocks, a.slice_k_blocks));
  if (a.slices > 1) plan->workspace_bytes = int64_t{4} * a.slices * a.pixels * a.out.out_channels;
}

bool IsRow(const ConvShape& s) {
  const bool same = s.taps() == 1 && s.stride_height == 1 && s.stride_width == 1;
  return same && s.out_pixels() <= kFewRows && s.pad_top + s.pad_bottom + s.pad_left + s.pad_right == 0;
}

void ChooseGrid(const ConvShape& s, int processors, ConvPlan* plan) {
  const int64_t columns = s.groups * plan->args.oc_blocks, pixels = plan->args.pixels;
  const bool wide = CeilDivide(pixels, 128) * columns >= processors;
  plan->path = IsRow(s) ? ConvPath::kRow : wide ? ConvPath::kTile128 : ConvPath::kTile32;
  const int64_t rows = plan->path == ConvPath::kRow ? pixels : CeilDivide(pixels, wide ? 128 : 32);
  Slice(rows * columns, processors, plan);
  const bool row = plan->path == ConvPath::kRow;
  plan->grid[0] = row ? plan->args.slices : rows;
  plan->grid[1] = columns;
  plan->grid[2] = row ? pixels : plan->args.slices;
}

}  // namespace

Status PlanWindow(const ConvShape& shape, const ConvCall& call, ConvArgs* args) {
  KLB_RETURN_IF_ERROR(CheckSizes(shape));
  KLB_RETURN_IF_ERROR(CheckZeroPoint(call.input_zero_point));
  KLB_RETURN_IF_ERROR(CheckEpilogue(call.epilogue));
  FillWindow(shape, call, args);
  return Status();
}

Status PlanPacking(const ConvShape& shape, const PackedWeights& weights, ConvArgs* args) {
  KLB_RETURN_IF_ERROR(CheckConv(shape));
  KLB_RETURN_IF_ERROR(CheckSizes(shape));
  // Taps as they lie in the kernel.
  ConvShape plain = shape;
  plain.dilation_height = plain.dilation_width = 1;
  FillWindow(plain, ConvCall(), args);
  FillWeights(plain, weights, args);
  return Status();
}

Status PlanConv(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call, int processors,
                ConvPlan* plan) {
  KLB_RETURN_IF_ERROR(CheckConv(shape));
  KLB_RETURN_IF_ERROR(CheckWeights(shape, weights));
  KLB_RETURN_IF_ERROR(CheckAlignment("codes", weights.codes));
  KLB_RETURN_IF_ERROR(CheckAlignment("scales", weights.scales));
  KLB_RETURN_IF_ERROR(PlanWindow(shape, call, &plan->args));
  if (shape.out_pixels() == 0) return Status();
  FillWeights(shape, weights, &plan->args);
  const bool int8 = weights.layout == WeightLayout::kInt8;
  plan->kind = int8 ? WeightKind::kInt8 : weights.scales == nullptr ? WeightKind::kTernary : WeightKind::kTernaryScaled;
  ChooseGrid(shape, processors, plan);
  return CheckAtMost("the number of blocks of 64 output channels", plan->grid[1], kMaxGridSide);
}

}  // namespace keras_lowbit::cuda
