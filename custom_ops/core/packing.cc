#include "core/packing.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/requantize.h"

namespace keras_lowbit {
namespace {

// Four codes c = 1, the weight zero.
constexpr int kZeroCodes = 0x55;

int64_t CeilDivide(int64_t a, int64_t b) { return a / b + (a % b != 0); }

bool IsTernary(const PackedWeights& weights) { return weights.layout == WeightLayout::kTernary2Bit; }

// Input channels of one cluster of one group.
int64_t ClusterChannels(const ConvShape& shape, const PackedWeights& weights) {
  const int64_t channels = shape.in_channels / shape.groups;
  const bool none = !IsTernary(weights) || weights.cluster_size <= 0;
  return none ? channels : std::min(weights.cluster_size, channels);
}

// Where one weight lives: which bits of which byte, and which scale.
struct Place {
  int64_t byte, scale;
  int bit;
};

// `input`, `output`: channels inside the group.
Place PlaceOf(const ConvShape& shape, const PackedWeights& weights, const WeightSizes& sizes, int64_t tap,
              int64_t input, int64_t output) {
  const int64_t per_cluster = ClusterChannels(shape, weights);
  const int64_t cluster = input / per_cluster, inside = input % per_cluster;
  const int64_t k_blocks = cluster + 1 == sizes.clusters ? sizes.last_k_blocks : sizes.cluster_k_blocks;
  const int64_t k_block = cluster * shape.taps() * sizes.cluster_k_blocks + tap * k_blocks + inside / kKBlock;
  const int64_t block = output / kBlockChannels, channel = output % kBlockChannels;
  const int64_t slot = kKBlock * (channel % kFieldChannels) + inside % kKBlock, field = channel / kFieldChannels;
  const int64_t base = block * sizes.k_blocks + k_block;
  const int64_t factors = weights.scales_per_tap ? sizes.clusters * shape.taps() : sizes.clusters;
  const int64_t factor = weights.scales_per_tap ? cluster * shape.taps() + tap : cluster;
  const int64_t scale = (block * factors + factor) * kBlockChannels + channel;
  if (!IsTernary(weights)) return {base * kInt8BlockBytes + kTernaryBlockBytes * field + slot, scale, 0};
  return {base * kTernaryBlockBytes + slot, scale, static_cast<int>(2 * field)};
}

// Calls visit(group, position in HWIO, place) for every weight.
template <class Visit>
void ForEachWeight(const ConvShape& shape, const PackedWeights& weights, const Visit& visit) {
  const WeightSizes sizes = WeightSizesOf(shape, weights);
  const int64_t inputs = shape.in_channels / shape.groups, outputs = shape.out_channels / shape.groups;
  for (int64_t tap = 0; tap < shape.taps(); ++tap) {
    for (int64_t input = 0; input < inputs; ++input) {
      const int64_t row = (tap * inputs + input) * shape.out_channels;
      for (int64_t output = 0; output < shape.out_channels; ++output) {
        visit(output / outputs, row + output, PlaceOf(shape, weights, sizes, tap, input, output % outputs));
      }
    }
  }
}

Status CheckCount(const char* name, const void* data, int64_t got, int64_t expected) {
  if (data != nullptr && got == expected) return Status();
  return Status::Error(std::string(name) + " of packed weights has " +
                       (data == nullptr ? "no data" : std::to_string(got)) + "; expected " + std::to_string(expected) +
                       ": pack the kernel again for this shape");
}

Status CheckValues(const ConvShape& shape, const PackedWeights& weights, const int8_t* kernel) {
  const int64_t count = shape.taps() * (shape.in_channels / shape.groups) * shape.out_channels;
  for (int64_t i = 0; IsTernary(weights) && i < count; ++i) {
    if (kernel[i] < -1 || kernel[i] > 1) {
      return Status::Error("weight " + std::to_string(i) + " is " + std::to_string(kernel[i]) +
                           "; expected -1, 0 or 1: pack other weights as int8");
    }
  }
  return Status();
}

}  // namespace

WeightSizes WeightSizesOf(const ConvShape& shape, const PackedWeights& weights) {
  const int64_t channels = shape.in_channels / shape.groups, outputs = shape.out_channels / shape.groups;
  const int64_t per_cluster = ClusterChannels(shape, weights);
  WeightSizes sizes;
  sizes.oc_blocks = CeilDivide(outputs, kBlockChannels);
  sizes.clusters = CeilDivide(channels, per_cluster);
  sizes.cluster_k_blocks = CeilDivide(per_cluster, kKBlock);
  sizes.last_k_blocks = CeilDivide(channels - (sizes.clusters - 1) * per_cluster, kKBlock);
  sizes.tap_k_blocks = (sizes.clusters - 1) * sizes.cluster_k_blocks + sizes.last_k_blocks;
  sizes.k_blocks = shape.taps() * sizes.tap_k_blocks;
  const int64_t block_bytes = IsTernary(weights) ? kTernaryBlockBytes : kInt8BlockBytes;
  const int64_t factors = weights.scales_per_tap ? sizes.clusters * shape.taps() : sizes.clusters;
  sizes.codes_bytes_total = shape.groups * sizes.oc_blocks * sizes.k_blocks * block_bytes;
  sizes.scales_bytes_total = shape.groups * sizes.oc_blocks * factors * kBlockChannels;
  sizes.sums_count_total = shape.groups * sizes.oc_blocks * kBlockChannels;
  return sizes;
}

Status CheckWeights(const ConvShape& shape, const PackedWeights& weights) {
  const WeightSizes sizes = WeightSizesOf(shape, weights);
  if (!IsTernary(weights) && (weights.scales != nullptr || weights.cluster_size != 0)) {
    return Status::Error("int8 packed weights came with cluster scales; expected none: multiply them into the weights");
  }
  KLB_RETURN_IF_ERROR(CheckCount("codes", weights.codes, weights.codes_bytes, sizes.codes_bytes_total));
  KLB_RETURN_IF_ERROR(CheckCount("sums", weights.sums, weights.sums_count, sizes.sums_count_total));
  if (weights.scales == nullptr) return Status();
  return CheckCount("scales", weights.scales, weights.scales_bytes, sizes.scales_bytes_total);
}

Status PackWeights(const ConvShape& shape, const PackedWeights& weights, const int8_t* kernel, void* codes,
                   int32_t* sums) {
  KLB_RETURN_IF_ERROR(CheckConv(shape));
  KLB_RETURN_IF_ERROR(CheckValues(shape, weights, kernel));
  const WeightSizes sizes = WeightSizesOf(shape, weights);
  std::memset(codes, IsTernary(weights) ? kZeroCodes : 0, sizes.codes_bytes_total);
  std::fill_n(sums, sizes.sums_count_total, 0);
  auto* bytes = static_cast<uint8_t*>(codes);
  const int64_t codes_of_group = sizes.codes_bytes_total / shape.groups;
  const int64_t scales_of_group = sizes.scales_bytes_total / shape.groups;
  const int64_t outputs = shape.out_channels / shape.groups;
  ForEachWeight(shape, weights, [&](int64_t group, int64_t position, const Place& place) {
    const int32_t value = kernel[position];
    uint8_t& byte = bytes[group * codes_of_group + place.byte];
    byte = IsTernary(weights) ? static_cast<uint8_t>((byte & ~(3 << place.bit)) | ((value + 1) << place.bit))
                              : static_cast<uint8_t>(value);
    const int32_t scale = weights.scales == nullptr ? 1 : weights.scales[group * scales_of_group + place.scale];
    int32_t& sum = sums[group * sizes.oc_blocks * kBlockChannels + position % shape.out_channels % outputs];
    sum = WrapAdd(sum, value * scale);
  });
  return Status();
}

Status UnpackWeights(const ConvShape& shape, const PackedWeights& weights, int8_t* kernel) {
  KLB_RETURN_IF_ERROR(CheckConv(shape));
  KLB_RETURN_IF_ERROR(CheckWeights(shape, weights));
  const WeightSizes sizes = WeightSizesOf(shape, weights);
  const auto* bytes = static_cast<const uint8_t*>(weights.codes);
  const int64_t codes_of_group = sizes.codes_bytes_total / shape.groups;
  const int64_t scales_of_group = sizes.scales_bytes_total / shape.groups;
  ForEachWeight(shape, weights, [&](int64_t group, int64_t position, const Place& place) {
    const uint8_t byte = bytes[group * codes_of_group + place.byte];
    const int32_t value = IsTernary(weights) ? ((byte >> place.bit) & 3) - 1 : static_cast<int8_t>(byte);
    const int32_t scale = weights.scales == nullptr ? 1 : weights.scales[group * scales_of_group + place.scale];
    kernel[position] = static_cast<int8_t>(value * scale);
  });
  return Status();
}

}  // namespace keras_lowbit
