#include "layers/constants.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "core/requantize.h"
#include "layers/fp32_requantize.h"

namespace keras_lowbit {
namespace {

// These run over all channels, at every call where nothing is kept, so their loops have no branch that would keep them
// from being vectorised.
Status CheckShifts(const Epilogue& epilogue, int64_t out_channels) {
  const int32_t* shift = epilogue.requantize.shift;
  int32_t least = 0, most = 0;
  for (int64_t c = 0; c < out_channels; ++c) least = std::min(least, shift[c]), most = std::max(most, shift[c]);
  KLB_RETURN_IF_ERROR(CheckShift("a shift", least));
  return CheckShift("a shift", most);
}

// Factors of one and more shift to the left first: ternary depthwise layers have such, whose totals are small.
bool AreFastFactors(const Requantize& requantize, int64_t out_channels, int64_t max_abs_total) {
  int32_t least = 0, least_shift = 0, left = 0;
  for (int64_t c = 0; c < out_channels; ++c) {
    least = std::min(least, requantize.multiplier[c]);
    least_shift = std::min(least_shift, requantize.shift[c]), left = std::max(left, requantize.shift[c]);
  }
  return least >= 0 && least_shift >= -30 && max_abs_total < kFastTotalBound >> left;
}

int64_t MaxAbsBias(const Epilogue& epilogue, int64_t out_channels) {
  int32_t least = 0, most = 0;
  for (int64_t c = 0; epilogue.bias != nullptr && c < out_channels; ++c) {
    least = std::min(least, epilogue.bias[c]), most = std::max(most, epilogue.bias[c]);
  }
  return std::max(-int64_t{least}, int64_t{most});
}

// NaN factors fail the comparison and so take the slow way.
bool AreFastDoubles(const double* factor, int64_t out_channels, double max_abs_total) {
  for (int64_t c = 0; c < out_channels; ++c) {
    if (!(std::fabs(factor[c]) * max_abs_total < kFastTotalBound)) return false;
  }
  return true;
}

PreparedEpilogue::Fast FastOf(const Epilogue& epilogue, int64_t out_channels, int64_t max_abs_total) {
  using Fast = PreparedEpilogue::Fast;
  if (epilogue.type != OutputType::kInt8) return Fast::kNo;
  const int64_t most = MaxAbsBias(epilogue, out_channels);
  if (max_abs_total >= kFastTotalBound - most) return Fast::kNo;
  const Requantize& requantize = epilogue.requantize;
  if (requantize.factor == nullptr) {
    return AreFastFactors(requantize, out_channels, max_abs_total + most) ? Fast::kFixed : Fast::kNo;
  }
  const bool fast = AreFastDoubles(requantize.factor, out_channels, static_cast<double>(max_abs_total + most));
  return fast ? Fast::kDouble : Fast::kNo;
}

// The block of `channels` output channels from `channel` on, filled with zeros before.
void FillBlock(const ConstantsSource& source, PreparedEpilogue::Fast fast, const int32_t* sums, int64_t channel,
               int64_t channels, ChannelBlock* block) {
  const Epilogue& epilogue = source.epilogue;
  for (int64_t c = 0; c < channels; ++c) block->init[c] = WrapSub(0, WrapMul(source.correction, sums[c]));
  for (int64_t c = 0; epilogue.bias != nullptr && c < channels; ++c) {
    block->init[c] = WrapAdd(block->init[c], epilogue.bias[channel + c]);
  }
  if (fast == PreparedEpilogue::Fast::kDouble)
    std::copy_n(epilogue.requantize.factor + channel, channels, block->factor);
  if (fast != PreparedEpilogue::Fast::kFixed) return;
  const int32_t* multiplier = epilogue.requantize.multiplier + channel;
  const int32_t* shift = epilogue.requantize.shift + channel;
  std::copy_n(multiplier, channels, block->multiplier);
  std::copy_n(multiplier + 1, channels - 1, block->multiplier_odd);
  for (int64_t c = 0; c < channels; ++c) {
    block->left[c] = std::max(shift[c], 0), block->shift[c] = std::max(-shift[c], 0);
    block->nudge[c] = (int32_t{1} << block->shift[c]) >> 1;
  }
}

// Float32 parameters of all channels, or false at the first that has none.
bool FillFp32(const ConstantsSource& source, std::vector<ChannelBlock>* blocks) {
  const Requantize& r = source.epilogue.requantize;
  const int32_t low = r.clamp_min - r.zero_point, high = r.clamp_max - r.zero_point;
  for (int64_t channel = 0; channel < source.out_channels; ++channel) {
    const int64_t group = channel / source.channels(), inside = channel % source.channels();
    ChannelBlock& block = (*blocks)[group * source.blocks() + inside / source.block_channels];
    const int64_t c = inside % source.block_channels;
    Fp32Requantize fp32;
    if (!FindFp32Requantize(r.multiplier[channel], r.shift[channel], low, high, &fp32)) return false;
    block.fp32_factor[c] = fp32.factor, block.fp32_nudge[c] = fp32.nudge;
  }
  return true;
}

int64_t BytesOf(const void* data, int64_t bytes) { return data == nullptr ? 0 : bytes; }

}  // namespace

Status CheckShift(const char* name, int32_t shift) {
  if (-31 <= shift && shift <= 31) return Status();
  return Status::Error(std::string(name) + " is " + std::to_string(shift) +
                       "; expected -31 to 31: form factors with quantize_multiplier");
}

Status MakeConstants(const ConstantsSource& source, bool with_fp32, Constants* constants) {
  const Epilogue& epilogue = source.epilogue;
  const bool int8 = epilogue.type == OutputType::kInt8;
  if (int8 && epilogue.requantize.factor == nullptr) KLB_RETURN_IF_ERROR(CheckShifts(epilogue, source.out_channels));
  constants->fast = FastOf(epilogue, source.out_channels, source.max_abs_total);
  constants->blocks.resize(source.groups * source.blocks());
  for (size_t i = 0; i < constants->blocks.size(); ++i) {
    const int64_t group = static_cast<int64_t>(i) / source.blocks(), block = static_cast<int64_t>(i) % source.blocks();
    const int64_t first = block * source.block_channels;
    FillBlock(source, constants->fast, source.sums + i * source.block_channels, group * source.channels() + first,
              std::min(source.block_channels, source.channels() - first), &constants->blocks[i]);
  }
  const bool fixed = constants->fast == PreparedEpilogue::Fast::kFixed;
  constants->seeks_fp32 = with_fp32;
  constants->has_fp32 = with_fp32 && fixed && FillFp32(source, &constants->blocks);
  return Status();
}

KeptResult::Pieces PiecesOf(const ConstantsSource& source, KeptResult::Piece weights, int64_t more,
                            ConstantNumbers* numbers) {
  const Requantize& r = source.epilogue.requantize;
  const int64_t n = source.out_channels;
  *numbers = {static_cast<int64_t>(source.epilogue.type),
              n,
              source.groups,
              source.block_channels,
              source.max_abs_total,
              source.correction,
              r.zero_point,
              r.clamp_min,
              r.clamp_max,
              more};
  return {{{numbers->data(), sizeof *numbers},
           weights,
           {source.epilogue.bias, BytesOf(source.epilogue.bias, 4 * n)},
           {r.multiplier, BytesOf(r.multiplier, 4 * n)},
           {r.shift, BytesOf(r.shift, 4 * n)},
           {r.factor, BytesOf(r.factor, 8 * n)}}};
}

Status GetConstants(const ConstantsSource& source, LayerCache* cache, std::shared_ptr<const Constants>* constants) {
  ConstantNumbers numbers;
  const int64_t sums = source.groups * source.blocks() * source.block_channels;
  const auto pieces = PiecesOf(source, {source.sums, 4 * sums}, 0, &numbers);
  if (cache != nullptr) *constants = std::static_pointer_cast<const Constants>(cache->constants.Find(pieces));
  const bool again = *constants != nullptr;
  if (again && (*constants)->seeks_fp32) return Status();
  const auto made = std::make_shared<Constants>();
  KLB_RETURN_IF_ERROR(MakeConstants(source, again, made.get()));
  if (cache != nullptr) cache->constants.Keep(pieces, made);
  *constants = made;
  return Status();
}

}  // namespace keras_lowbit
