// One row of features, or one pixel of a 1x1 layer: every weight is read once, straight from the packed bytes, and the
// layer runs at the speed of memory. No tensor cores: a product of 4 bytes (dp4a) keeps up.
//
// A block takes 64 channels and a slice of k. A thread reads 16 bytes at a time: of ternary weights one k-block of 16
// channels, of int8 weights one of 4.
#pragma once

#include "cuda/output.h"
#include "cuda/tile.h"

namespace keras_lowbit::cuda {

template <WeightKind kKind>
struct RowTile {
  static constexpr int kVectors = WeightWords(kKind) / kVectorWords;  // of a k-block
  static constexpr int kRows = kThreads / kVectors;                   // k-blocks that the threads read at once
  static constexpr int kFieldsOfWord = kKind == WeightKind::kInt8 ? 1 : kFields;
  static constexpr int kStride = kBlockChannels + 16;  // words of a row: two rows' vectors lie in different banks
  static constexpr int kSharedWords = kRows * kStride;
};

template <WeightKind kKind>
struct RowRegisters {
  int32_t sums[kVectorWords][RowTile<kKind>::kFieldsOfWord];
};

// The channel, of 64, of word `word` and field `field` of a vector.
template <WeightKind kKind>
KLB_DEVICE int RowChannel(int vector, int word, int field) {
  if (kKind == WeightKind::kInt8) return vector * kVectorWords + word;  // 16 j + channel: the vectors are in order
  return kFieldChannels * field + vector * kVectorWords + word;
}

template <WeightKind kKind>
KLB_DEVICE void AddVector(const ConvArgs& a, const KPlace& k, uint32_t x, const Vector& codes, int32_t oc_block,
                          int vector, RowRegisters<kKind>& r) {
  const int8_t* scales = nullptr;
  if (kKind == WeightKind::kTernaryScaled) {
    scales = a.scales + (static_cast<int64_t>(oc_block) * FactorRows(a) + k.factor) * kBlockChannels;
  }
  KLB_DEVICE_UNROLL for (int field = 0; field < RowTile<kKind>::kFieldsOfWord; ++field) {
    const uint32_t factors = scales == nullptr ? 0 : LoadWord(scales + RowChannel<kKind>(vector, 0, field));
    KLB_DEVICE_UNROLL for (int word = 0; word < kVectorWords; ++word) {
      int32_t& sum = r.sums[word][field];
      const uint32_t packed = codes.words[word];
      if (kKind == WeightKind::kInt8) sum = DotAdd(x, packed, sum);
      if (kKind == WeightKind::kTernary) sum = DotAdd(x, DecodeTernary(packed, field), sum);
      if (kKind == WeightKind::kTernaryScaled) {
        const int32_t dot = DotAdd(x, DecodeTernary(packed, field), 0);
        sum = WrapAdd(sum, WrapMul(ByteOf(factors, word), dot));
      }
    }
  }
}

template <WeightKind kKind>
KLB_DEVICE void SumSlice(const ConvArgs& a, const int8_t* row, int32_t oc_block, int32_t begin, int32_t end, int thread,
                         RowRegisters<kKind>& r) {
  using Tile = RowTile<kKind>;
  const int vector = thread % Tile::kVectors;
  const uint8_t* codes = a.codes + static_cast<int64_t>(oc_block) * a.k_blocks * Tile::kVectors * kVectorBytes;
  for (auto& fields : r.sums) {
    for (int32_t& sum : fields) sum = 0;
  }
#if defined(__CUDACC__)
#pragma unroll 4
#endif
  for (int32_t k_block = begin + thread / Tile::kVectors; k_block < end; k_block += Tile::kRows) {
    const Vector packed = LoadVector(codes + (static_cast<int64_t>(k_block) * Tile::kVectors + vector) * kVectorBytes);
    const KPlace k = PlaceOfRowK(a, k_block);
    AddVector<kKind>(a, k, LoadBytes(row + k.channel, k.channels), packed, oc_block, vector, r);
  }
}

// Grid: slices of k, blocks of channels of all groups, rows.
template <WeightKind kKind, class Block>
KLB_DEVICE void RowBody(Block& block, const ConvArgs& a) {
  using Tile = RowTile<kKind>;
  auto* shared = reinterpret_cast<int32_t*>(block.shared());
  const int32_t group = block.y() / a.oc_blocks, begin = block.x() * a.slice_k_blocks;
  const int32_t end = begin + a.slice_k_blocks < a.k_blocks ? begin + a.slice_k_blocks : a.k_blocks;
  const int8_t* row = a.input + static_cast<int64_t>(block.z()) * a.in_channels + group * a.group_inputs;
  block.ForThreads([&](int thread, auto& r) {
    SumSlice<kKind>(a, row, block.y(), begin, end, thread, r);
    KLB_DEVICE_UNROLL for (int word = 0; word < kVectorWords; ++word) {
      KLB_DEVICE_UNROLL for (int field = 0; field < Tile::kFieldsOfWord; ++field) {
        const int channel = RowChannel<kKind>(thread % Tile::kVectors, word, field);
        shared[thread / Tile::kVectors * Tile::kStride + channel] = r.sums[word][field];
      }
    }
  });
  block.Sync();
  block.ForThreads([&](int thread, auto&) {
    const int32_t first = (block.y() - group * a.oc_blocks) * kBlockChannels;
    if (thread >= kBlockChannels || first + thread >= a.out.group_outputs) return;
    int32_t sum = 0;
    for (int i = 0; i < Tile::kRows; ++i) sum = WrapAdd(sum, shared[i * Tile::kStride + thread]);
    WriteSums(a, block.x(), &sum, block.z(), group * a.out.group_outputs + first + thread, 1);
  });
}

}  // namespace keras_lowbit::cuda
