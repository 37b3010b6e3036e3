// Matrix tiles: blocks of 64 output channels over positions of an image, 16 at a time.
//
//   total[q][c] = init[c] + sum over taps t and i < 64 * steps of
//                 pixels[tap_offsets[t] + q * pixel_bytes + i] * weights[t][i][c]                     modulo 2**32
//
// A tile of activations is 16 neighbouring positions by 64 bytes, read where they are; a panel is 32 channels of
// weights, two tiles wide, unpacked from the layouts of core/packing.h. It is as deep as the layer or, where that leaves
// the cache that it should stay in, as a slice of it: totals wait in memory for the next slice. Weights beyond a tap's
// k-blocks are zero, so what the image holds there does not count. Activations are signed: no offset. Only some ISA
// targets have tiles.
#pragma once

#include <cstdint>

#include "kernels/ternary_block/ternary_block.h"

namespace keras_lowbit {

constexpr int kTilePositions = 16;                       // rows of a tile of activations
constexpr int kTileDepth = 64;                           // bytes of its rows: channels of one step
constexpr int kTileBytes = kTilePositions * kTileDepth;  // of activations or weights
constexpr int kTileKBlocks = kTileDepth / kKBlock;       // rows of a tile of weights
constexpr int kPanelChannels = 32;

// Positions of an image, one line of pixels (layers/tile_image.h lays it out), and which of them are outputs: those of
// the first `width` of each `row_positions`, in the first `height` of each `entry_rows` rows.
struct TileImage {
  const int8_t* pixels = nullptr;
  int64_t pixel_bytes = 0;  // from one position to the next
  const int64_t* tap_offsets = nullptr;
  int64_t taps = 0, steps = 0;       // steps of kTileDepth channels, of one tap
  int64_t slice_steps = 0;           // of all taps together, so many at a time
  int64_t positions = 0, tiles = 0;  // up to the last output; a whole tile can be read where there are fewer
  int64_t row_positions = 0, width = 0, entry_rows = 0, height = 0;

  int64_t slices() const { return (taps * steps + slice_steps - 1) / slice_steps; }
  int64_t panel_bytes() const { return slice_steps * (kPanelChannels / kFieldChannels) * kTileBytes; }
};

struct TileArgs {
  TileImage image;
  bool ternary = false;      // kTernary2Bit, else kInt8
  ClusterArgs clusters;      // scales left out; of int8: one cluster
  int8_t* panels = nullptr;   // scratch of panel_bytes() for each panel of a block, aligned; one alone in slices
  int32_t* totals = nullptr;  // scratch, aligned: TotalsOf(the most tiles of a task)
  const PreparedEpilogue* epilogue = nullptr;
};

// One block of channels over a stretch of tiles. Tasks of the same block, one after another, unpack it once.
struct TileTask {
  const void* weights = nullptr;
  const int8_t* scales = nullptr;  // [clusters][taps or 1][kBlockChannels], null: ones
  const ChannelBlock* constants = nullptr;
  int64_t first_channel = 0, channels = 0;  // in the output; of the block that are real
  int64_t first_tile = 0, tiles = 0;
};

constexpr int64_t kPairTotals = 2 * kTilePositions * kPanelChannels;

// Totals of a panel that a task of so many tiles needs memory for: a pair of tiles, or all where they wait for the next
// slice; and a row more, which vectors read.
inline int64_t TotalsOf(const TileImage& image, int64_t tiles) {
  const int64_t pairs = image.slices() > 1 ? (tiles + 1) / 2 : 1;
  return pairs * kPairTotals + kPanelChannels;
}

// What `bench/tiles_bench` measures.
struct TileLimits {
  // When a layer runs on tiles: of so many output pixels or more, and if the tiles multiply at most so many times what
  // the layer has, with positions between rows, depths up to 64 and channels up to 16.
  int64_t fewest_pixels = 1, most_products = int64_t{1} << 20;
  // Of a slice: where tiles are few it stays in the first-level cache with their totals, else in the second.
  int64_t most_steps = 1, most_steps_of_many = 1;
};

struct TileBlockKernel {
  void (*run)(const TileArgs& args, const TileTask* tasks, int64_t count);  // null: the target has no tiles
  TileLimits limits;
};

TileBlockKernel SelectTileBlock(Isa isa);

// Other limits for all targets, for measuring them while nothing else runs; null: their own again. Kept plans stay.
void SetTileLimits(const TileLimits* limits);

#define KLB_KERNEL(isa, function, fewest_pixels, most_products, most_steps, most_steps_of_many) \
  void function(const TileArgs& args, const TileTask* tasks, int64_t count);
#include "kernels/tile_block/kernels.inc"
#undef KLB_KERNEL

}  // namespace keras_lowbit
