// How a tile of a convolution lies in shared memory and in the registers of a warp. Index functions alone: they compile
// for host and device, and the emulation runs the kernels on the host with them.
//
// A block of 4 warps makes 32 or 128 output pixels x 64 output channels, 16 k-blocks of 4 k at a time. Warp w takes the
// pixels of half w / 2 and, of each 16 channels, the 8 of half w % 2; its products are mma.sync.m16n8k32 (PTX ISA,
// "Matrix Fragments for mma.m16n8k32", .s8): rows are pixels, columns are channels.
//
//   lane = 4 * group + step        group 0..7, step 0..3
//   A   a0: row group,     k 4 * step..+3      a1: row group + 8, the same k     a2, a3: as a0, a1 with k + 16
//   B   b0: column group,  k 4 * step..+3      b1: k + 16
//   C   c0, c1: row group, columns 2 * step, 2 * step + 1                        c2, c3: row group + 8
//
// One register of B is thus one k-block of one channel. A 32-bit word of packed ternary weights holds one k-block of 4
// channels, 16 apart (core/packing.h): a shift and a mask give a register of B, and no weight moves between lanes.
#pragma once

#include <cstdint>

#include "core/blocks.h"
#include "core/host_device.h"

namespace keras_lowbit::cuda {

constexpr int kLanes = 32, kWarps = 4, kThreads = kLanes * kWarps;
constexpr int kVectorBytes = 16, kVectorWords = kVectorBytes / 4;
constexpr int kTileKBlocks = 16;         // k-blocks of a stage: 64 bytes of a pixel
constexpr int kRowWords = kTileKBlocks;  // of a pixel in shared memory, a word for each k-block
constexpr int kRowVectors = kRowWords / kVectorWords;
constexpr int kFragmentPixels = 16;                // rows of one product
constexpr int kFragmentKBlocks = 8;                // k of one product, in k-blocks
constexpr int kFields = kCodesPerByte;             // columns' tiles of a warp: the four channels of a packed word
constexpr int kTotalsStride = kBlockChannels + 8;  // words of a pixel's totals: 4 rows' pairs lie in 32 different banks

enum class WeightKind { kTernary, kTernaryScaled, kInt8 };

KLB_HOST_DEVICE constexpr int WeightWords(WeightKind kind) {
  return (kind == WeightKind::kInt8 ? kInt8BlockBytes : kTernaryBlockBytes) / 4;  // of one k-block
}

// Words of shared memory: two stages, or in the end half of the totals.
template <WeightKind kKind, int kRowTiles>
struct ConvTile {
  static constexpr int kHalfPixels = kFragmentPixels * kRowTiles;  // of the warps of one half
  static constexpr int kPixels = 2 * kHalfPixels;
  static constexpr int kImageWords = kPixels * kRowWords;
  static constexpr int kWeightWords = kTileKBlocks * WeightWords(kKind);
  static constexpr int kScaleWords = kKind == WeightKind::kTernaryScaled ? kTileKBlocks * kBlockChannels / 4 : 0;
  static constexpr int kStageWords = kImageWords + kWeightWords + kScaleWords;
  static constexpr int kTotalsWords = kHalfPixels * kTotalsStride;
  static constexpr int kSharedWords = 2 * kStageWords > kTotalsWords ? 2 * kStageWords : kTotalsWords;
};

// A lane's place in a fragment, and a warp's in the tile.
struct LanePlace {
  int group, step, pixel_half, channel_half;
};
KLB_HOST_DEVICE inline LanePlace PlaceOfThread(int thread) {
  const int lane = thread % kLanes, warp = thread / kLanes;
  return {lane / 4, lane % 4, warp / 2, warp % 2};
}

// Word `k_block` of a pixel's row. Vectors of rows 2 r and 2 r + 1 change places by r, so that 8 rows of one vector lie in
// 32 different banks.
KLB_HOST_DEVICE inline int ImageVector(int pixel, int vector) {
  return pixel * kRowVectors + (vector ^ ((pixel >> 1) & 3));
}
KLB_HOST_DEVICE inline int ImageWord(int pixel, int k_block) {
  return ImageVector(pixel, k_block / kVectorWords) * kVectorWords + k_block % kVectorWords;
}

// Vector and word of the weights of one k-block of the stage. A lane reads word 16 * field + channel (int8) or channel
// (ternary) of k-block `step`, channel 0..15: what is flipped makes the four steps read different banks.
KLB_HOST_DEVICE inline int WeightVector(WeightKind kind, int k_block, int vector) {
  if (kind == WeightKind::kInt8) return k_block * 16 + (vector ^ ((k_block & 3) * 2));
  return k_block * 4 + (vector ^ (k_block & 2));
}
KLB_HOST_DEVICE inline int WeightWord(WeightKind kind, int k_block, int word) {
  return WeightVector(kind, k_block, word / kVectorWords) * kVectorWords + word % kVectorWords;
}

// Vector `vector`, of 16 channels, of the scales of a k-block of the stage: k-blocks 2 apart begin in the same bank.
KLB_HOST_DEVICE inline int ScaleVector(int k_block, int vector) { return k_block * 4 + (vector ^ ((k_block >> 1) & 1)); }

// The word of shared memory that register i of a fragment of activations comes from: of row tile `tile` of `row_tiles`, from
// k-block `first` of the stage on.
KLB_HOST_DEVICE inline int ImageFragmentWord(const LanePlace& place, int row_tiles, int tile, int first, int i) {
  const int pixel = (place.pixel_half * row_tiles + tile) * kFragmentPixels + place.group;
  return ImageWord(pixel + 8 * (i % 2), first + place.step + 4 * (i / 2));
}

// The vector whose address a lane hands to ldmatrix.x4 (PTX ISA) for the same four registers: lanes 8 i to 8 i + 7 give the
// rows of matrix i, each 8 pixels by one vector, and register i of a lane becomes word `step` of row `group` of matrix i.
KLB_HOST_DEVICE inline int ImageMatrixVector(int thread, int row_tiles, int tile, int first) {
  const int lane = thread % kLanes, matrix = lane / 8;
  const int pixel = (PlaceOfThread(thread).pixel_half * row_tiles + tile) * kFragmentPixels;
  return ImageVector(pixel + 8 * (matrix % 2) + lane % 8, first / kVectorWords + matrix / 2);
}

// A lane's channel, of 16, and the k-block of register `half` of its fragment of weights.
KLB_HOST_DEVICE inline int FragmentChannel(const LanePlace& place) { return 8 * place.channel_half + place.group; }
KLB_HOST_DEVICE inline int FragmentKBlock(const LanePlace& place, int first, int half) {
  return first + place.step + 4 * half;
}

// First of the two neighbouring channels, inside the block of 64, whose totals a lane holds in c0, c1 and c2, c3.
KLB_HOST_DEVICE inline int TotalChannel(const LanePlace& place, int field) {
  return kFieldChannels * field + 8 * place.channel_half + 2 * place.step;
}

// The word that total i of a lane is staged in on its way to whole rows of channels, among the pixels of its half.
KLB_HOST_DEVICE inline int TotalWord(const LanePlace& place, int tile, int field, int i) {
  const int pixel = tile * kFragmentPixels + place.group;
  return (pixel + 8 * (i / 2)) * kTotalsStride + TotalChannel(place, field) + i % 2;
}

// Four ternary codes of a packed word, of the channel of field j: bytes -1, 0, 1. Adding 127 carries nothing.
KLB_HOST_DEVICE inline uint32_t DecodeTernary(uint32_t word, int field) {
  return (((word >> (2 * field)) & 0x03030303u) + 0x7F7F7F7Fu) ^ 0x80808080u;
}

// The same times a scale of 0..127: bytes of scale * t, exact.
KLB_HOST_DEVICE inline uint32_t DecodeScaled(uint32_t word, int field, uint32_t scale) {
  const uint32_t codes = word >> (2 * field), high = codes >> 1;
  const uint32_t plus = high & 0x01010101u, minus = ~(codes | high) & 0x01010101u;
  return plus * scale | minus * ((256u - scale) & 0xFFu);
}

}  // namespace keras_lowbit::cuda
