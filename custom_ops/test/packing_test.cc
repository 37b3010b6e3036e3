// The packed layouts: every bit where core/packing.h says, round trips, sums, and refused sizes.
#include "core/packing.h"

#include "test/cases.h"

namespace keras_lowbit::test {
namespace {

// Where the header puts weight (k, oc), restated for one cluster: k counts (tap, channel).
void CheckPlaces() {
  ConvShape s;
  s.kernel_height = 2;
  s.in_channels = 8;
  s.out_channels = 130;
  for (int64_t k = 0; k < 16; ++k) {
    for (int64_t oc = 0; oc < s.out_channels; ++oc) {
      std::vector<int8_t> kernel(16 * s.out_channels, 0);
      kernel[k * s.out_channels + oc] = 1;
      PackedWeights weights;
      std::vector<uint8_t> codes(3 * 4 * 64);
      std::vector<int32_t> sums(192);
      KLB_CHECK_OK(PackWeights(s, weights, kernel.data(), codes.data(), sums.data()));
      const int64_t byte = (oc / 64 * 4 + k / 4) * 64 + 4 * (oc % 16) + k % 4, bit = 2 * (oc % 64 / 16);
      for (int64_t i = 0; i < static_cast<int64_t>(codes.size()); ++i) {
        KLB_CHECK(codes[i] == (i == byte ? 0x55 + (1 << bit) : 0x55), std::to_string(k) + " " + std::to_string(oc));
      }
      for (int64_t c = 0; c < 192; ++c) KLB_CHECK(sums[c] == (c == oc), std::to_string(c));
    }
  }
}

// Ragged clusters and groups come back as they went in; Draw packs and unpacks.
void CheckRoundTrips() {
  Random random(3);
  for (int round = 0; round < 400; ++round) {
    Layer layer;
    ConvShape& s = layer.shape;
    s.groups = Between(random, 1, 3);
    s.in_channels = s.groups * Between(random, 1, 21);
    s.out_channels = s.groups * Between(random, 1, 70);
    s.kernel_height = Between(random, 1, 3);
    s.kernel_width = Between(random, 1, 3);
    layer.kind = random() % 4 ? Kind::kTernary : Kind::kInt8;
    const bool ternary = layer.kind == Kind::kTernary;
    layer.cluster_size = ternary ? Between(random, 0, s.in_channels) : 0;
    std::vector<int8_t> before = Filled(random, s.taps() * s.in_channels / s.groups * s.out_channels, Fill::kRandom,
                                        ternary ? -1 : -128, ternary ? 1 : 127);
    PackedWeights weights;
    weights.layout = ternary ? WeightLayout::kTernary2Bit : WeightLayout::kInt8;
    weights.cluster_size = layer.cluster_size;
    const WeightSizes sizes = WeightSizesOf(s, weights);
    std::vector<uint8_t> codes(sizes.codes_bytes_total);
    std::vector<int32_t> sums(sizes.sums_count_total);
    KLB_CHECK_OK(PackWeights(s, weights, before.data(), codes.data(), sums.data()));
    weights.codes = codes.data();
    weights.codes_bytes = sizes.codes_bytes_total;
    weights.sums = sums.data();
    weights.sums_count = sizes.sums_count_total;
    std::vector<int8_t> after(before.size());
    KLB_CHECK_OK(UnpackWeights(s, weights, after.data()));
    KLB_CHECK(before == after, Describe(layer));
  }
}

void CheckErrors() {
  ConvShape s;
  s.in_channels = 4;
  PackedWeights weights;
  uint8_t codes[64];
  int32_t sums[64];
  const int8_t kernel[4] = {1, 0, 2, -1};
  KLB_CHECK_ERROR(PackWeights(s, weights, kernel, codes, sums), "weight 2 is 2; expected -1, 0 or 1");
  KLB_CHECK_ERROR(CheckWeights(s, weights), "codes of packed weights has no data; expected 64");
  weights.codes = codes;
  weights.codes_bytes = 63;
  weights.sums = sums;
  weights.sums_count = 64;
  KLB_CHECK_ERROR(CheckWeights(s, weights), "codes of packed weights has 63; expected 64");
  weights.codes_bytes = 64;
  KLB_CHECK_OK(CheckWeights(s, weights));
  const int8_t scales[64] = {};
  weights.scales = scales;
  weights.scales_bytes = 65;
  KLB_CHECK_ERROR(CheckWeights(s, weights), "scales of packed weights has 65; expected 64");
  weights.layout = WeightLayout::kInt8;
  KLB_CHECK_ERROR(CheckWeights(s, weights), "int8 packed weights came with cluster scales");
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  keras_lowbit::test::CheckPlaces();
  keras_lowbit::test::CheckRoundTrips();
  keras_lowbit::test::CheckErrors();
  return 0;
}
