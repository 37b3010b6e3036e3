// Work without a tile: one index, one result. The GPU runs them a thread each, the emulation in a loop.
#pragma once

#include "core/output_factors.h"
#include "cuda/output.h"
#include "cuda/tile.h"

namespace keras_lowbit::cuda {

// Four neighbouring channels of a depthwise layer. kernel: [taps][out_channels].
struct DepthwiseQuad {
  ConvArgs a;
  const int8_t* kernel;
  int32_t multiplier;

  KLB_HOST_DEVICE int32_t Quads() const { return (a.out.out_channels + 3) / 4; }
  KLB_HOST_DEVICE int64_t count() const { return static_cast<int64_t>(a.pixels) * Quads(); }

  // The codes that channels channel .. channel + count - 1 meet in one pixel of the image.
  KLB_DEVICE uint32_t Codes(const int8_t* pixel, int32_t channel, int count) const {
    if (multiplier == 1) return LoadBytes(pixel + channel, count);
    uint32_t codes = 0;
    for (int i = 0; i < count; ++i) {
      codes |= static_cast<uint32_t>(static_cast<uint8_t>(pixel[(channel + i) / multiplier])) << (8 * i);
    }
    return codes;
  }

  KLB_DEVICE void operator()(int64_t index) const {
    const int32_t pixel = static_cast<int32_t>(index / Quads());
    const int32_t channel = static_cast<int32_t>(index - static_cast<int64_t>(pixel) * Quads()) * 4;
    const int count = a.out.out_channels - channel < 4 ? a.out.out_channels - channel : 4;
    const PixelPlace place = PlaceOfPixel(a, pixel);
    int32_t sums[4] = {};
    for (int32_t tap = 0; tap < a.taps; ++tap) {
      const int32_t row = tap / a.kernel_width, column = tap - row * a.kernel_width;
      const int8_t* from = AddressOf(a, place, {row * a.dilation_height, column * a.dilation_width, 0, 4, 0}, 0);
      if (from == nullptr) continue;
      const uint32_t x = Codes(from, channel, count);
      const uint32_t w = LoadBytes(kernel + static_cast<int64_t>(tap) * a.out.out_channels + channel, count);
      for (int i = 0; i < count; ++i) {
        sums[i] = WrapAdd(sums[i], (ByteOf(x, i) - a.out.input_zero_point) * ByteOf(w, i));
      }
    }
    WriteOutput(a.out, sums, pixel, channel, count);
  }
};

// Four neighbouring channels of a maximum over windows.
struct PoolQuad {
  ConvArgs a;
  int8_t* output;
  int32_t padding_code, low, high;

  KLB_HOST_DEVICE int32_t Quads() const { return (a.in_channels + 3) / 4; }
  KLB_HOST_DEVICE int64_t count() const { return static_cast<int64_t>(a.pixels) * Quads(); }

  KLB_DEVICE void operator()(int64_t index) const {
    const int32_t pixel = static_cast<int32_t>(index / Quads());
    const int32_t channel = static_cast<int32_t>(index - static_cast<int64_t>(pixel) * Quads()) * 4;
    const int count = a.in_channels - channel < 4 ? a.in_channels - channel : 4;
    const PixelPlace place = PlaceOfPixel(a, pixel);
    int32_t most[4] = {-128, -128, -128, -128};
    for (int32_t tap = 0; tap < a.taps; ++tap) {
      const int32_t row = tap / a.kernel_width, column = tap - row * a.kernel_width;
      const int8_t* from = AddressOf(a, place, {row, column, 0, 4, 0}, 0);
      const uint32_t x = from == nullptr ? FourTimes(padding_code) : LoadBytes(from + channel, count);
      for (int i = 0; i < count; ++i) most[i] = ByteOf(x, i) > most[i] ? ByteOf(x, i) : most[i];
    }
    uint32_t codes = 0;
    for (int i = 0; i < count; ++i) {
      codes |= static_cast<uint32_t>(static_cast<uint8_t>(ToCode(most[i], 0, low, high))) << (8 * i);
    }
    StoreBytes(codes, output + static_cast<int64_t>(pixel) * a.in_channels + channel, count);
  }
};

struct LookUpCode {
  const int8_t *input, *table;  // table: [256], from code -128 on
  int8_t* output;
  int64_t size;

  KLB_HOST_DEVICE int64_t count() const { return size; }
  KLB_DEVICE void operator()(int64_t i) const { output[i] = table[input[i] + 128]; }
};

struct LookUpPairOfCodes {
  const int8_t *first, *second, *table;  // table: [256][256]
  int8_t* output;
  int64_t size;

  KLB_HOST_DEVICE int64_t count() const { return size; }
  KLB_DEVICE void operator()(int64_t i) const { output[i] = table[(first[i] + 128) * 256 + second[i] + 128]; }
};

// Multiplier, shift and bias of one channel: rows of `output`.
struct OutputFactorOfChannel {
  const float *scale, *bias;  // bias: null for zeros
  int32_t* output;            // [3][channels]
  int64_t channels;
  float input_scale, output_scale;

  KLB_HOST_DEVICE int64_t count() const { return channels; }
  KLB_DEVICE void operator()(int64_t i) const {
    const OutputFactor factor = OutputFactorOf(scale[i], bias == nullptr ? 0 : bias[i], input_scale, output_scale);
    output[i] = factor.multiplier, output[channels + i] = factor.shift, output[2 * channels + i] = factor.bias;
  }
};

// One byte of packed weights, from a kernel HWIO (core/packing.h has the order). a: as for the layer itself.
struct PackByte {
  ConvArgs a;
  const int8_t* kernel;
  uint8_t* codes;
  int32_t groups;
  bool ternary;

  KLB_HOST_DEVICE int64_t count() const {
    return static_cast<int64_t>(groups) * a.oc_blocks * a.k_blocks * (ternary ? kTernaryBlockBytes : kInt8BlockBytes);
  }

  // The weight of channel `channel` (of 64) and k `inside` of a k-block; 0 in the padding.
  KLB_DEVICE int32_t Weight(int32_t oc_block, const KPlace& k, int32_t channel, int inside) const {
    const int32_t group = oc_block / a.oc_blocks, output = oc_block % a.oc_blocks * kBlockChannels + channel;
    if (output >= a.out.group_outputs || inside >= k.channels) return 0;
    const int64_t tap = k.row * a.kernel_width + k.column;
    return kernel[(tap * a.group_inputs + k.channel + inside) * a.out.out_channels + group * a.out.group_outputs +
                  output];
  }

  KLB_DEVICE void operator()(int64_t index) const {
    const int bytes = ternary ? kTernaryBlockBytes : kInt8BlockBytes;
    const int64_t block = index / bytes;
    const int byte = static_cast<int>(index - block * bytes), slot = byte % kTernaryBlockBytes;
    const int32_t oc_block = static_cast<int32_t>(block / a.k_blocks);
    const KPlace k = PlaceOfK(a, static_cast<int32_t>(block - static_cast<int64_t>(oc_block) * a.k_blocks));
    if (!ternary) {
      const int32_t channel = byte / kTernaryBlockBytes * kFieldChannels + slot / kKBlock;
      codes[index] = static_cast<uint8_t>(Weight(oc_block, k, channel, slot % kKBlock));
      return;
    }
    uint32_t packed = 0;
    for (int field = 0; field < kFields; ++field) {
      const int32_t weight = Weight(oc_block, k, field * kFieldChannels + slot / kKBlock, slot % kKBlock);
      packed |= static_cast<uint32_t>(weight + 1) << (2 * field);
    }
    codes[index] = static_cast<uint8_t>(packed);
  }
};

// The sum of the weights of one channel, its scales included; 0 in the padding.
struct PackSum {
  PackByte pack;
  int32_t* sums;

  KLB_HOST_DEVICE int64_t count() const {
    return static_cast<int64_t>(pack.groups) * pack.a.oc_blocks * kBlockChannels;
  }

  KLB_DEVICE void operator()(int64_t index) const {
    const ConvArgs& a = pack.a;
    const int32_t oc_block = static_cast<int32_t>(index / kBlockChannels);
    const int32_t channel = static_cast<int32_t>(index % kBlockChannels);
    int32_t sum = 0;
    for (int32_t k_block = 0; k_block < a.k_blocks; ++k_block) {
      const KPlace k = PlaceOfK(a, k_block);
      const int64_t row = static_cast<int64_t>(oc_block) * FactorRows(a) + k.factor;
      const int32_t scale = a.scales == nullptr ? 1 : a.scales[row * kBlockChannels + channel];
      for (int i = 0; i < kKBlock; ++i) sum = WrapAdd(sum, scale * pack.Weight(oc_block, k, channel, i));
    }
    sums[index] = sum;
  }
};

}  // namespace keras_lowbit::cuda
