// Depthwise convolution: checks, weights, blocking.
//
// Blocks of 64 output channels of the same depth index m: with a depth multiplier above 1 the outputs of
// a block are not neighbours, so those layers go channel by channel through the same kernel contract.
#include <algorithm>
#include <memory>
#include <vector>

#include "core/per_thread.h"
#include "core/requantize.h"
#include "kernels/depthwise/depthwise.h"
#include "layers/constants.h"
#include "layers/epilogue.h"
#include "layers/indirection.h"
#include "layers/layers.h"
#include "layers/scratch.h"

namespace keras_lowbit {
namespace {

// The limit of a chunk of many taps, whose table would hold fewer pixels.
constexpr int64_t kFewestPixels = 8;

struct Plan {
  ConvShape shape;
  DepthwiseKernel kernel = {};
  int64_t block_channels = kBlockChannels, blocks = 0;  // output channels of a block
  int64_t multiplier = 1;
  int64_t chunk_pixels = 0, chunks = 0;
  const int8_t* input = nullptr;
  const int8_t* weights = nullptr;  // [blocks][ceil(taps / kKBlock)][kBlockChannels][kKBlock]
  const int8_t* padding = nullptr;
  const ChannelBlock* constants = nullptr;
  const PreparedEpilogue* epilogue = nullptr;

  int64_t weights_of_block() const { return (shape.taps() + kKBlock - 1) / kKBlock * kInt8BlockBytes; }
  int64_t channels_of(int64_t block) const {
    return std::min(block_channels, shape.out_channels - block * block_channels);
  }
};

// kernel [taps][out_channels] of one block, and each channel's sum of weights. `weights` is filled with zeros before.
void PackBlock(const Plan& plan, const int8_t* kernel, int64_t block, int8_t* weights, int32_t* sums) {
  const int64_t taps = plan.shape.taps(), first = block * plan.block_channels;
  std::fill_n(sums, plan.channels_of(block), 0);
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < plan.channels_of(block); ++c) {
      const int8_t weight = kernel[tap * plan.shape.out_channels + first + c];
      weights[tap / kKBlock * kInt8BlockBytes + kKBlock * plan.kernel.Slot(c) + tap % kKBlock] = weight;
      sums[c] = WrapAdd(sums[c], weight);
    }
  }
}

void RunTasks(const Plan& plan, int64_t begin, int64_t end) {
  static const PerThread<Scratch> scratches;
  const auto** rows = scratches.Get().Get<const int8_t*>(plan.chunk_pixels * plan.shape.taps());
  BlockArgs args;
  args.rows = rows;
  args.taps = plan.shape.taps();
  args.epilogue = plan.epilogue;
  const ImageView image = {plan.input, plan.shape.in_channels, plan.shape.in_width, plan.padding};
  int64_t filled = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / plan.blocks, block = task % plan.blocks;
    args.first_pixel = chunk * plan.chunk_pixels;
    args.pixels = std::min(plan.chunk_pixels, plan.shape.out_pixels() - args.first_pixel);
    args.tap_stride = args.pixels;
    args.first_channel = block * plan.block_channels;
    args.channels = plan.channels_of(block);
    args.weights = plan.weights + block * plan.weights_of_block();
    args.constants = plan.constants + block;
    args.channel_offset = args.first_channel / plan.multiplier;
    if (chunk != filled) FillRows(plan.shape, image, args.first_pixel, args.pixels, rows);
    filled = chunk;
    plan.kernel.run(args);
  }
}

void PlanBlocks(Plan* plan) {
  plan->multiplier = plan->shape.out_channels / plan->shape.in_channels;
  plan->block_channels = plan->multiplier == 1 ? kBlockChannels : 1;
  plan->blocks = (plan->shape.out_channels + plan->block_channels - 1) / plan->block_channels;
  const int64_t pixels = plan->shape.out_pixels();
  plan->chunk_pixels = std::min(std::max<int64_t>(kTableEntries / plan->shape.taps(), kFewestPixels), pixels);
  plan->chunks = (pixels + plan->chunk_pixels - 1) / plan->chunk_pixels;
}

Status Check(const ConvShape& shape, const int8_t* kernel, int32_t input_zero_point, const Epilogue& epilogue) {
  KLB_RETURN_IF_ERROR(CheckDepthwise(shape));
  KLB_RETURN_IF_ERROR(CheckEpilogue(epilogue));
  if (kernel == nullptr) return Status::Error("a depthwise layer came without a kernel; expected int8 weights");
  if (-128 <= input_zero_point && input_zero_point <= 127) return Status();
  return Status::Error("the input's zero point is " + std::to_string(input_zero_point) +
                       "; expected an int8 code, -128 to 127");
}

// The smallest shape with the same bound on its sums: a depthwise sum has one product a tap.
int64_t MaxAbsSum(ConvShape shape) {
  shape.in_channels = 1;
  return MaxAbsAccumulator(shape, 128);
}

struct Packed {
  std::vector<int8_t> weights, padding;  // padding: one pixel of zero points
  Constants constants;
};

// Weights and constants, from the cache if nothing has changed; see GetConstants.
Status GetPacked(const Plan& plan, const int8_t* kernel, int32_t input_zero_point, const Epilogue& epilogue,
                 LayerCache* cache, std::shared_ptr<const Packed>* packed) {
  const int64_t channels = plan.shape.out_channels;
  ConstantsSource source = {epilogue,
                            channels,
                            1,
                            plan.block_channels,
                            MaxAbsSum(plan.shape),
                            nullptr,
                            input_zero_point + plan.kernel.activation_offset};
  ConstantNumbers numbers;
  const auto pieces = PiecesOf(source, {kernel, plan.shape.taps() * channels}, plan.kernel.lanes, &numbers);
  if (cache != nullptr) *packed = std::static_pointer_cast<const Packed>(cache->constants.Find(pieces));
  const bool again = *packed != nullptr;
  if (again && (*packed)->constants.seeks_fp32) return Status();
  const auto made = std::make_shared<Packed>();
  made->padding.assign(plan.shape.in_channels, static_cast<int8_t>(input_zero_point));
  made->weights.resize(plan.blocks * plan.weights_of_block());
  std::vector<int32_t> sums(plan.blocks * kBlockChannels);
  for (int64_t block = 0; block < plan.blocks; ++block) {
    PackBlock(plan, kernel, block, made->weights.data() + block * plan.weights_of_block(),
              sums.data() + block * plan.block_channels);
  }
  source.sums = sums.data();
  KLB_RETURN_IF_ERROR(MakeConstants(source, again, &made->constants));
  if (cache != nullptr) cache->constants.Keep(pieces, made);
  *packed = made;
  return Status();
}

}  // namespace

Status DepthwiseConv2D(const ConvShape& shape, const int8_t* kernel, const int8_t* input, int32_t input_zero_point,
                       const Epilogue& epilogue, void* output, const ParallelFor& parallel, LayerCache* cache) {
  KLB_RETURN_IF_ERROR(Check(shape, kernel, input_zero_point, epilogue));
  Isa isa;
  KLB_RETURN_IF_ERROR(ActiveIsa(&isa));
  if (shape.out_pixels() == 0) return Status();
  Plan plan;
  plan.shape = shape;
  plan.kernel = SelectDepthwise(isa);
  plan.input = input;
  PlanBlocks(&plan);
  std::shared_ptr<const Packed> packed;
  KLB_RETURN_IF_ERROR(GetPacked(plan, kernel, input_zero_point, epilogue, cache, &packed));
  const PreparedEpilogue prepared = PrepareEpilogue(epilogue, packed->constants, shape.out_channels, output);
  plan.epilogue = &prepared;
  plan.weights = packed->weights.data();
  plan.constants = packed->constants.blocks.data();
  plan.padding = packed->padding.data();
  const Work work = [&plan](int64_t begin, int64_t end) { RunTasks(plan, begin, end); };
  const int64_t products = plan.chunk_pixels * shape.taps() * plan.block_channels;
  RunAll(parallel, plan.chunks * plan.blocks, products / plan.kernel.products_per_nanosecond + 1, work);
  return Status();
}

}  // namespace keras_lowbit
