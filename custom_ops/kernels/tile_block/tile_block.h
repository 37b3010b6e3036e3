// Matrix tiles: blocks of 64 output channels over positions of an image, 16 at a time.
//
//   total[q][c] = init[c] + sum over taps t and i < 64 * steps of
//                 pixels[tap_offsets[t] + q * pixel_bytes + i] * weights[t][i][c]                     modulo 2**32
//
// A tile of activations is 16 neighbouring positions by 64 bytes, read where they are; a panel is 32 channels of
// weights, two tiles wide, unpacked from the layouts of core/packing.h. Weights beyond a tap's k-blocks are zero, so
// what the image holds there does not count. Activations are signed: no offset. Only some ISA targets have tiles.
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
  int64_t positions = 0, tiles = 0;  // up to the last output; a whole tile can be read where there are fewer
  int64_t row_positions = 0, width = 0, entry_rows = 0, height = 0;
  int64_t panel_bytes = 0;  // of the weights of kPanelChannels
};

struct TileArgs {
  TileImage image;
  bool ternary = false;      // kTernary2Bit, else kInt8
  ClusterArgs clusters;      // scales left out; of int8: one cluster
  int8_t* panels = nullptr;  // scratch of panel_bytes for each panel of a block, aligned
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

struct TileBlockKernel {
  void (*run)(const TileArgs& args, const TileTask* tasks, int64_t count);  // null: the target has no tiles
  // When a layer runs on tiles: of so many output pixels or more, and if the tiles multiply at most so many times what
  // the layer has, with positions between rows, depths up to 64 and channels up to 16.
  int64_t fewest_pixels, most_products;
};

TileBlockKernel SelectTileBlock(Isa isa);

#define KLB_KERNEL(isa, function, fewest_pixels, most_products) \
  void function(const TileArgs& args, const TileTask* tasks, int64_t count);
#include "kernels/tile_block/kernels.inc"
#undef KLB_KERNEL

}  // namespace keras_lowbit
