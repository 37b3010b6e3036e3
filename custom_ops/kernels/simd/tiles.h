// A block of channels on matrix tiles, written once over the tile instructions (Tiles: AmxTiles or EmulatedTiles) and
// over the vectors V of the rest: Avx512Panel, or plain C++ (kernels/tile_block/reference_amx.cc).
//
// V has Bytes (64 of them), Load, DecodeBytes, StoreBytes, SpreadScales and Scale as generic.h has them, and
//   ApplyEpilogue(task, prepared, field, totals, pixel, count)
//       the totals of `count` neighbouring output pixels to the output: up to 32 channels from 16 * field on, which
//       stand there in rows of kBlockChannels.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/simd/generic.h"
#include "kernels/simd/tile_config.h"
#include "kernels/tile_block/tile_block.h"

namespace keras_lowbit {
namespace {

// Steps begin <= s < end of a layer, counted over all taps: what the panels hold at a time.
struct Slice {
  int64_t begin, end;
};

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

inline Slice SliceAt(const TileImage& image, int64_t index) {
  const int64_t begin = index * image.slice_steps;
  return {begin, Least(begin + image.slice_steps, image.taps * image.steps)};
}

// Panels: [panel][step of the slice][2 tiles][kTileKBlocks rows][16 channels][kKBlock]. Row r of a tap's tiles is its
// k-block r; a field is 16 channels. row: counted from the slice's first step.
inline int64_t PanelRow(const TileImage& image, int64_t row, int field) {
  const int64_t tile = 2 * (row / kTileKBlocks) + field % 2;
  return field / 2 * image.panel_bytes() + tile * kTileBytes + row % kTileKBlocks * kTileDepth;
}

inline int Fields(int64_t channels) { return static_cast<int>((channels + kFieldChannels - 1) / kFieldChannels); }

// k-blocks of one tap, those of the slice, from the packed layout to their rows. row: of the first, from the slice's
// first step on, before or behind it too.
template <class V>
void FillRows(const TileArgs& args, const Slice& slice, int64_t row, int64_t k_blocks, const uint8_t* packed,
              const int8_t* scales, int fields) {
  const int64_t rows = (slice.end - slice.begin) * kTileKBlocks;
  const int64_t begin = row < 0 ? -row : 0, end = Least(k_blocks, rows - row);
  if (begin >= end) return;
  typename V::Bytes scale[4] = {};
  KLB_UNROLL for (int f = 0; f < 4; ++f) {
    if (scales != nullptr) scale[f] = V::SpreadScales(scales + kFieldChannels * f);
  }
  for (int64_t b = begin; b < end; ++b) {
    typename V::Bytes w[4];
    if (args.ternary) {
      V::DecodeBytes(packed + kTernaryBlockBytes * b, w);
    } else {
      KLB_UNROLL for (int f = 0; f < 4; ++f)
        w[f] = V::Load(reinterpret_cast<const int8_t*>(packed) + kInt8BlockBytes * b + kTernaryBlockBytes * f);
    }
    KLB_UNROLL for (int f = 0; f < 4; ++f) {
      if (f < fields) {
        V::StoreBytes(args.panels + PanelRow(args.image, row + b, f),
                      scales == nullptr ? w[f] : V::Scale(w[f], scale[f]));
      }
    }
  }
}

// Rows beyond the last k-block of each tap, all in its last step.
inline void ClearRows(const TileArgs& args, const Slice& slice, int64_t k_blocks, int fields) {
  const int64_t steps = args.image.steps, count = steps * kTileKBlocks - k_blocks;
  for (int64_t tap = 0; count > 0 && tap < args.image.taps; ++tap) {
    const int64_t last = (tap + 1) * steps - 1, row = (last + 1 - slice.begin) * kTileKBlocks - count;
    if (last < slice.begin || last >= slice.end) continue;
    for (int f = 0; f < fields; ++f) std::memset(args.panels + PanelRow(args.image, row, f), 0, count * kTileDepth);
  }
}

// The panels of a block, in the packed order: clusters outermost, taps, k-blocks.
template <class V>
void FillPanels(const TileArgs& args, const TileTask& task, const Slice& slice) {
  const ClusterArgs& clusters = args.clusters;
  const int fields = Fields(task.channels);
  const auto* packed = static_cast<const uint8_t*>(task.weights);
  const int8_t* scales = task.scales;
  int64_t first = 0;
  for (int64_t cluster = 0; cluster < clusters.clusters; ++cluster) {
    const int64_t k_blocks = cluster + 1 == clusters.clusters ? clusters.last_k_blocks : clusters.cluster_k_blocks;
    for (int64_t tap = 0; tap < args.image.taps; ++tap) {
      const int64_t row = (tap * args.image.steps - slice.begin) * kTileKBlocks + first;
      FillRows<V>(args, slice, row, k_blocks, packed, scales, fields);
      packed += k_blocks * (args.ternary ? kTernaryBlockBytes : kInt8BlockBytes);
      if (scales != nullptr && (clusters.scales_per_tap || tap + 1 == args.image.taps)) scales += kBlockChannels;
    }
    first += k_blocks;
  }
  ClearRows(args, slice, first, fields);
}

// Walks over positions and calls visit(row, pixel, count) for each stretch of neighbouring outputs; row counts from the
// first position of the call.
class OutputWalk {
 public:
  OutputWalk(const TileImage& image, int64_t position) : image_(image), x_(position % image.row_positions) {
    const int64_t line = position / image.row_positions;
    row_ = line % image.entry_rows;
    pixel_ = (line / image.entry_rows * image.height + Least(row_, image.height)) * image.width;
  }

  template <class Visit>
  void Advance(int64_t positions, const Visit& visit) {
    for (int64_t done = 0; done < positions;) {
      const bool inside = row_ < image_.height && x_ < image_.width;
      const int64_t count = Least((inside ? image_.width : image_.row_positions) - x_, positions - done);
      if (inside) visit(done, pixel_ + x_, count);
      done += count;
      x_ += count;
      if (x_ == image_.row_positions) NextRow();
    }
  }

 private:
  void NextRow() {
    x_ = 0;
    if (row_ < image_.height) pixel_ += image_.width;
    if (++row_ == image_.entry_rows) row_ = 0;
  }

  const TileImage& image_;
  int64_t x_, row_, pixel_;  // pixel: of the row's first output
};

// What kA x kB tiles are multiplied from: the positions at `first` and `second`, one or two fields of a panel. init: of
// the panel's channels, the same for each position. totals: rows of kBlockChannels.
struct Product {
  const int8_t *first, *second, *panel;
  const int32_t* init;
  int32_t* totals;
};

// Adds a slice to the totals; the first begins with `init`.
template <int kA, int kB, class Tiles>
void Multiply(Tiles& tiles, const TileImage& image, const Slice& slice, const Product& product) {
  constexpr int64_t kRow = kBlockChannels * sizeof(int32_t), kNext = kTilePositions * kBlockChannels;
  const auto [first, second, panel_begin, init, totals] = product;
  const int8_t* panel = panel_begin;
  const bool begins = slice.begin == 0;
  const int32_t *above = begins ? init : totals, *below = begins ? init : totals + kNext;
  const int64_t stride = begins ? 0 : kRow;
  tiles.template Load<0>(above, stride);
  if constexpr (kB > 1) tiles.template Load<1>(above + 16, stride);
  if constexpr (kA > 1) tiles.template Load<2>(below, stride);
  if constexpr (kA > 1 && kB > 1) tiles.template Load<3>(below + 16, stride);
  int64_t tap = slice.begin / image.steps, skipped = slice.begin % image.steps;
  for (int64_t left = slice.end - slice.begin; left > 0; ++tap, skipped = 0) {
    const int64_t steps = Least(image.steps - skipped, left);
    left -= steps;
    int64_t at = image.tap_offsets[tap] + skipped * kTileDepth;
    for (int64_t step = 0; step < steps; ++step, at += kTileDepth, panel += 2 * kTileBytes) {
      tiles.template Load<4>(first + at, image.pixel_bytes);
      tiles.template Load<6>(panel, kTileDepth);
      tiles.template Dot<0, 4, 6>();
      if constexpr (kB > 1) tiles.template Load<7>(panel + kTileBytes, kTileDepth);
      if constexpr (kB > 1) tiles.template Dot<1, 4, 7>();
      if constexpr (kA > 1) tiles.template Load<5>(second + at, image.pixel_bytes);
      if constexpr (kA > 1) tiles.template Dot<2, 5, 6>();
      if constexpr (kA > 1 && kB > 1) tiles.template Dot<3, 5, 7>();
    }
  }
  tiles.template Store<0>(totals, kRow);
  if constexpr (kB > 1) tiles.template Store<1>(totals + 16, kRow);
  if constexpr (kA > 1) tiles.template Store<2>(totals + kNext, kRow);
  if constexpr (kA > 1 && kB > 1) tiles.template Store<3>(totals + kNext + 16, kRow);
}

// 32 channels, or 16 where the block ends, of a block over its tiles.
struct Panel {
  const TileArgs& args;
  const TileTask& task;
  Slice slice;
  int field;  // the first of its two fields
  bool is_wide() const { return Fields(task.channels) > field + 1; }
  int64_t first_channel() const { return task.first_channel + kFieldChannels * field; }
};

// The first position that a tile reads: the last tile of an image begins early enough to end with it.
inline int64_t TileStart(const TileImage& image, int64_t position) {
  const int64_t last = image.positions > kTilePositions ? image.positions - kTilePositions : 0;
  return Least(position, last);
}

// Totals of the tile at `position`, and of the next where `two`.
template <class Tiles>
void MultiplyPanel(Tiles& tiles, const Panel& panel, int64_t position, bool two, int32_t* totals) {
  const TileImage& image = panel.args.image;
  const Product product = {image.pixels + TileStart(image, position) * image.pixel_bytes,
                           image.pixels + TileStart(image, position + kTilePositions) * image.pixel_bytes,
                           panel.args.panels + panel.field / 2 * image.panel_bytes(),
                           panel.task.constants->init + kFieldChannels * panel.field,
                           totals + kFieldChannels * panel.field};
  if (two && panel.is_wide()) return Multiply<2, 2>(tiles, image, panel.slice, product);
  if (two) return Multiply<2, 1>(tiles, image, panel.slice, product);
  if (panel.is_wide()) return Multiply<1, 2>(tiles, image, panel.slice, product);
  Multiply<1, 1>(tiles, image, panel.slice, product);
}

// The codes of a residual that the next `positions` will meet: cache lines here and there, which no prefetcher follows.
inline void PrefetchResidual(const Panel& panel, OutputWalk walk, int64_t positions) {
  const PreparedEpilogue& prepared = *panel.args.epilogue;
  if (!prepared.has_residual) return;
  const int8_t* codes = prepared.definition->residual.codes + panel.first_channel();
  walk.Advance(positions, [&](int64_t, int64_t pixel, int64_t count) {
    for (int64_t p = pixel; p < pixel + count; ++p) __builtin_prefetch(codes + p * prepared.pixel_stride);
  });
}

// One slice of a panel over the tiles of a task, two at a time; outputs behind the last. What a tile reads again is not
// stored again: the output may lie in the residual's memory.
template <class V, class Tiles>
void RunPanel(Tiles& tiles, const Panel& panel) {
  const TileImage& image = panel.args.image;
  const int64_t begin = panel.task.first_tile * kTilePositions;
  const int64_t end = Least(begin + panel.task.tiles * kTilePositions, image.positions);
  const bool finishes = panel.slice.end == image.taps * image.steps, waits = panel.slice.begin > 0 || !finishes;
  OutputWalk walk(image, begin);
  for (int64_t q = begin; q < end; q += 2 * kTilePositions) {
    int32_t* totals = panel.args.totals + (waits ? (q - begin) * kBlockChannels : 0);
    if (finishes) PrefetchResidual(panel, walk, Least(2 * kTilePositions, end - q));
    MultiplyPanel(tiles, panel, q, q + kTilePositions < end, totals);
    if (!finishes) continue;
    for (int64_t tile = 0, from = q; tile < 2 && from < end; ++tile, from += kTilePositions) {
      const int32_t* rows = totals + (tile * kTilePositions + from - TileStart(image, from)) * kBlockChannels;
      walk.Advance(Least(kTilePositions, end - from), [&](int64_t row, int64_t pixel, int64_t count) {
        V::ApplyEpilogue(panel.task, *panel.args.epilogue, panel.field, rows + row * kBlockChannels, pixel, count);
      });
    }
  }
}

template <class Tiles, class V>
void RunTileBlock(const TileArgs& args, const TileTask* tasks, int64_t count) {
  Tiles tiles(WholeTiles());
  const int64_t slices = args.image.slices();
  for (int64_t i = 0; i < count * slices; ++i) {
    const TileTask& task = tasks[i / slices];
    const Slice slice = SliceAt(args.image, i % slices);
    if (slices > 1 || i == 0 || task.weights != tasks[i - 1].weights) FillPanels<V>(args, task, slice);
    for (int field = 0; field < Fields(task.channels); field += 2) RunPanel<V>(tiles, {args, task, slice, field});
  }
}

}  // namespace
}  // namespace keras_lowbit
