// A convolution as an implicit matrix product on int8 tensor cores: pixels x k times k x channels, no im2col copy.
//
// Two stages of 16 k-blocks alternate in shared memory: while one is multiplied, the next is on its way. Activations are
// bytes of the image, or the zero point in its padding; weights come as packed bytes and are decoded in registers, the
// cluster scales multiplied in: scale * t fits int8 exactly.
#pragma once

#include "cuda/output.h"
#include "cuda/tile.h"

namespace keras_lowbit::cuda {

// Rows of the image that one thread brings: every kThreads / kRowVectors-th pixel of the tile.
constexpr int kLoaderPixels = kThreads / kRowVectors;

template <int kRowTiles>
struct ConvRegisters {
  static constexpr int kLoads = ConvTile<WeightKind::kInt8, kRowTiles>::kPixels / kLoaderPixels;
  PixelPlace pixels[kLoads];
  uint32_t a[kRowTiles][4];
  uint32_t b[kFields][2];
  int32_t totals[kRowTiles][kFields][4];
};

// The tile of a block: which pixels, which 64 channels (of all groups' blocks), which k-blocks.
struct TilePlace {
  int32_t first_pixel, oc_block, slice, begin, end;
  int32_t group_input;
};

template <class Block>
KLB_DEVICE TilePlace PlaceOfTile(const Block& block, const ConvArgs& a, int tile_pixels) {
  const int32_t begin = block.z() * a.slice_k_blocks;
  const int32_t end = begin + a.slice_k_blocks < a.k_blocks ? begin + a.slice_k_blocks : a.k_blocks;
  return {block.x() * tile_pixels, block.y(), block.z(), begin, end, block.y() / a.oc_blocks * a.group_inputs};
}

// Four k-blocks of a pixel, byte by byte where channels do not come in aligned sixteens.
KLB_DEVICE Vector GatherVector(const ConvArgs& a, const TilePlace& tile, const PixelPlace& pixel, int32_t k_block) {
  Vector vector;
  for (int i = 0; i < kVectorWords; ++i) {
    vector.words[i] = 0;
    if (k_block + i >= tile.end) continue;  // meets weights of zero
    const KPlace k = PlaceOfK(a, k_block + i);
    const int8_t* from = AddressOf(a, pixel, k, tile.group_input);
    vector.words[i] = from == nullptr ? FourTimes(a.out.input_zero_point) : LoadBytes(from, k.channels);
  }
  return vector;
}

template <class Block, class Registers>
KLB_DEVICE void LoadImage(Block& block, const ConvArgs& a, const TilePlace& tile, int32_t k_block, int thread,
                          const Registers& r, Vector* image) {
  const int vector = thread % kRowVectors;
  const int32_t first = k_block + vector * kVectorWords;
  const bool exists = first < tile.end;
  const KPlace k = PlaceOfK(a, exists ? first : tile.begin);
  KLB_DEVICE_UNROLL for (int i = 0; i < Registers::kLoads; ++i) {
    Vector* to = image + ImageVector(thread / kRowVectors + i * kLoaderPixels, vector);
    if (!a.whole_vectors) {
      *to = GatherVector(a, tile, r.pixels[i], first);
      continue;
    }
    const int8_t* from = exists ? AddressOf(a, r.pixels[i], k, tile.group_input) : nullptr;
    const uint32_t zero = FourTimes(a.out.input_zero_point);
    if (from == nullptr) *to = {{zero, zero, zero, zero}};
    if (from != nullptr) block.CopyVector(to, from);
  }
}

template <WeightKind kKind, class Block>
KLB_DEVICE void LoadWeights(Block& block, const ConvArgs& a, const TilePlace& tile, int32_t k_block, int thread,
                            Vector* weights) {
  constexpr int kVectors = WeightWords(kKind) / kVectorWords;  // of a k-block
  constexpr uint32_t kZero = kKind == WeightKind::kInt8 ? 0 : 0x55555555u;
  const uint8_t* codes = a.codes + static_cast<int64_t>(tile.oc_block) * a.k_blocks * kVectors * kVectorBytes;
  for (int i = thread; i < kTileKBlocks * kVectors; i += kThreads) {
    const int row = i / kVectors, vector = i % kVectors;
    Vector* to = weights + WeightVector(kKind, row, vector);
    if (k_block + row >= tile.end) *to = {{kZero, kZero, kZero, kZero}};
    if (k_block + row < tile.end) {
      block.CopyVector(to, codes + (static_cast<int64_t>(k_block + row) * kVectors + vector) * kVectorBytes);
    }
  }
}

template <class Block>
KLB_DEVICE void LoadScales(Block& block, const ConvArgs& a, const TilePlace& tile, int32_t k_block, int thread,
                           Vector* scales) {
  constexpr int kVectors = kBlockChannels / kVectorBytes;  // of a row of 64 scales
  const int row = thread / kVectors, vector = thread % kVectors;
  if (row >= kTileKBlocks || k_block + row >= tile.end) return;  // a scale of zero codes does not count
  const int64_t from = static_cast<int64_t>(tile.oc_block) * FactorRows(a) + PlaceOfK(a, k_block + row).factor;
  block.CopyVector(scales + ScaleVector(row, vector), a.scales + from * kBlockChannels + vector * kVectorBytes);
}

template <WeightKind kKind, int kRowTiles, class Block>
KLB_DEVICE void LoadStage(Block& block, const ConvArgs& a, const TilePlace& tile, int32_t k_block, uint32_t* stage) {
  using Tile = ConvTile<kKind, kRowTiles>;
  auto* image = reinterpret_cast<Vector*>(stage);
  auto* weights = reinterpret_cast<Vector*>(stage + Tile::kImageWords);
  auto* scales = reinterpret_cast<Vector*>(stage + Tile::kImageWords + Tile::kWeightWords);
  block.ForThreads([&](int thread, auto& r) {
    if (k_block < tile.end) {
      LoadImage(block, a, tile, k_block, thread, r, image);
      LoadWeights<kKind>(block, a, tile, k_block, thread, weights);
      if (kKind == WeightKind::kTernaryScaled) LoadScales(block, a, tile, k_block, thread, scales);
    }
    block.Commit();
  });
}

// Registers of B of one lane: column 16 * field + channel of k-block `k_block` of the stage.
template <WeightKind kKind>
KLB_DEVICE void ReadWeights(const uint32_t* weights, const uint8_t* scales, int k_block, int channel, int half,
                            uint32_t b[kFields][2]) {
  const uint32_t packed = kKind == WeightKind::kInt8 ? 0 : weights[WeightWord(kKind, k_block, channel)];
  KLB_DEVICE_UNROLL for (int field = 0; field < kFields; ++field) {
    const int place = kFieldChannels * field + channel;
    if (kKind == WeightKind::kInt8) b[field][half] = weights[WeightWord(kKind, k_block, place)];
    if (kKind == WeightKind::kTernary) b[field][half] = DecodeTernary(packed, field);
    if (kKind == WeightKind::kTernaryScaled) {
      b[field][half] = DecodeScaled(packed, field, scales[ScaleVector(k_block, field) * kVectorBytes + channel]);
    }
  }
}

template <int kRowTiles, class Block>
KLB_DEVICE void ReadImageFragments(Block& block, const uint32_t* stage, int first) {
  KLB_DEVICE_UNROLL for (int tile = 0; tile < kRowTiles; ++tile) {
    if (block.LoadsMatrices()) {
      block.LoadMatrices(tile, [&](int thread) {
        return reinterpret_cast<const Vector*>(stage) + ImageMatrixVector(thread, kRowTiles, tile, first);
      });
      continue;
    }
    block.ForThreads([&](int thread, auto& r) {
      KLB_DEVICE_UNROLL for (int i = 0; i < 4; ++i) {
        r.a[tile][i] = stage[ImageFragmentWord(PlaceOfThread(thread), kRowTiles, tile, first, i)];
      }
    });
  }
}

template <WeightKind kKind, int kRowTiles, class Block>
KLB_DEVICE void ReadFragments(Block& block, const uint32_t* stage, int first) {
  using Tile = ConvTile<kKind, kRowTiles>;
  ReadImageFragments<kRowTiles>(block, stage, first);
  const uint32_t* weights = stage + Tile::kImageWords;
  const auto* scales = reinterpret_cast<const uint8_t*>(weights + Tile::kWeightWords);
  block.ForThreads([&](int thread, auto& r) {
    const LanePlace place = PlaceOfThread(thread);
    KLB_DEVICE_UNROLL for (int half = 0; half < 2; ++half) {
      ReadWeights<kKind>(weights, scales, FragmentKBlock(place, first, half), FragmentChannel(place), half, r.b);
    }
  });
}

template <WeightKind kKind, int kRowTiles, class Block>
KLB_DEVICE void MultiplyStage(Block& block, const uint32_t* stage) {
  KLB_DEVICE_UNROLL for (int first = 0; first < kTileKBlocks; first += kFragmentKBlocks) {
    ReadFragments<kKind, kRowTiles>(block, stage, first);
    KLB_DEVICE_UNROLL for (int tile = 0; tile < kRowTiles; ++tile) {
      KLB_DEVICE_UNROLL for (int field = 0; field < kFields; ++field) { block.Multiply(tile, field); }
    }
  }
}

// Totals lie in registers as the product leaves them; over shared memory to whole rows of channels, first those of the
// warps of one half of the pixels, then those of the other: both at once would be twice the memory of two stages, and
// fewer blocks a processor.
template <int kRowTiles, class Block>
KLB_DEVICE void StageTotals(Block& block, int half, int32_t* totals) {
  block.ForThreads([&](int thread, auto& r) {
    const LanePlace place = PlaceOfThread(thread);
    if (place.pixel_half != half) return;
    KLB_DEVICE_UNROLL for (int tile = 0; tile < kRowTiles; ++tile) {
      KLB_DEVICE_UNROLL for (int field = 0; field < kFields; ++field) {
        KLB_DEVICE_UNROLL for (int i = 0; i < 4; i += 2) {
          const int32_t* pair = r.totals[tile][field] + i;
          StorePair(totals + TotalWord(place, tile, field, i), pair[0], pair[1]);
        }
      }
    }
  });
}

// `first`, `pixels`: which of the image's pixels are staged.
template <class Block>
KLB_DEVICE void WriteTile(Block& block, const ConvArgs& a, const TilePlace& tile, int32_t first, int pixels,
                          const int32_t* totals) {
  const int32_t group = tile.oc_block / a.oc_blocks;
  const int32_t first_channel = (tile.oc_block - group * a.oc_blocks) * kBlockChannels;
  block.ForThreads([&](int thread, auto&) {
    const int quad = thread % (kBlockChannels / 4) * 4;
    const int32_t left = a.out.group_outputs - first_channel - quad;
    for (int row = thread / (kBlockChannels / 4); row < pixels; row += kThreads / (kBlockChannels / 4)) {
      const int32_t pixel = first + row;
      if (left <= 0 || pixel >= a.pixels) return;
      const int32_t channel = group * a.out.group_outputs + first_channel + quad;
      WriteSums(a, tile.slice, totals + row * kTotalsStride + quad, pixel, channel, left < 4 ? left : 4);
    }
  });
}

// Grid: tiles of pixels, blocks of channels of all groups, slices of k.
template <WeightKind kKind, int kRowTiles, class Block>
KLB_DEVICE void ConvBody(Block& block, const ConvArgs& a) {
  using Tile = ConvTile<kKind, kRowTiles>;
  const TilePlace tile = PlaceOfTile(block, a, Tile::kPixels);
  auto* shared = reinterpret_cast<uint32_t*>(block.shared());
  block.ForThreads([&](int thread, auto& r) {
    KLB_DEVICE_UNROLL for (int i = 0; i < r.kLoads; ++i) {
      r.pixels[i] = PlaceOfPixel(a, tile.first_pixel + thread / kRowVectors + i * kLoaderPixels);
    }
    for (auto& fields : r.totals) {
      for (auto& totals : fields) {
        for (int32_t& total : totals) total = 0;
      }
    }
  });
  LoadStage<kKind, kRowTiles>(block, a, tile, tile.begin, shared);
  int stage = 0;
  for (int32_t k = tile.begin; k < tile.end; k += kTileKBlocks, stage ^= 1) {
    LoadStage<kKind, kRowTiles>(block, a, tile, k + kTileKBlocks, shared + (stage ^ 1) * Tile::kStageWords);
    block.template WaitForAllBut<1>();
    block.Sync();
    MultiplyStage<kKind, kRowTiles>(block, shared + stage * Tile::kStageWords);
    block.Sync();
  }
  auto* totals = reinterpret_cast<int32_t*>(shared);
  for (int half = 0; half < 2; ++half) {
    if (half == 1) block.Sync();
    StageTotals<kRowTiles>(block, half, totals);
    block.Sync();
    WriteTile(block, a, tile, tile.first_pixel + half * Tile::kHalfPixels, Tile::kHalfPixels, totals);
  }
}

}  // namespace keras_lowbit::cuda
