// A block of channels on matrix tiles, written once over the tile instructions (Tiles: AmxTiles or EmulatedTiles) and
// over the vectors V of the rest: Avx512Panel, or plain C++ (kernels/tile_block/reference_amx.cc).
//
// V has Bytes (64 of them), Load, StoreBytes, SpreadScales and Scale as generic.h has them, and
//   DecodeHalf<kHalf>(codes, w)
//       the first (0) or the last (1) two fields of a k-block's codes.
//   ApplyEpilogue(task, prepared, field, totals, pixel, count)
//       the totals of `count` neighbouring output pixels, in rows of kPanelChannels, to the output: up to 32 channels
//       from 16 * field on.
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

// 32 channels, or 16 where the block ends, of a block over its tiles, a slice deep.
struct Panel {
  const TileArgs& args;
  const TileTask& task;
  Slice slice;
  int field;  // the first of its two fields
  bool is_wide() const { return task.channels > kFieldChannels * (field + 1); }
  int64_t first_channel() const { return task.first_channel + kFieldChannels * field; }
  bool is_whole() const { return slice.end - slice.begin == args.image.taps * args.image.steps; }
  // [step of the slice][2 tiles][kTileKBlocks rows][16 channels][kKBlock]. Row r of a tap's tiles is its k-block r. Whole
  // panels serve several tasks, each at its own place.
  int8_t* memory() const { return args.panels + (is_whole() ? field / 2 * args.image.panel_bytes() : 0); }
};

// Of a row of a panel's first tile; row: counted from the slice's first step.
inline int64_t RowOffset(int64_t row) {
  const auto r = static_cast<uint64_t>(row);
  return static_cast<int64_t>(r / kTileKBlocks * 2 * kTileBytes + r % kTileKBlocks * kTileDepth);
}

// k-blocks that follow one another in the packed layout, to rows of a panel. scales: of the block's channels, or null.
template <class V, int kHalf, bool kTernary>
void FillRows(int8_t* memory, int64_t row, int64_t k_blocks, const uint8_t* packed, const int8_t* scales) {
  typename V::Bytes w[2], scale[2] = {};
  KLB_UNROLL for (int f = 0; f < 2; ++f) {
    if (scales != nullptr) scale[f] = V::SpreadScales(scales + kFieldChannels * (2 * kHalf + f));
  }
  for (int64_t b = 0; b < k_blocks; ++b) {
    if constexpr (kTernary) V::template DecodeHalf<kHalf>(packed + kTernaryBlockBytes * b, w);
    KLB_UNROLL for (int f = 0; f < 2; ++f) {
      const int64_t at = kInt8BlockBytes * b + kTernaryBlockBytes * (2 * kHalf + f);
      if constexpr (!kTernary) w[f] = V::Load(reinterpret_cast<const int8_t*>(packed) + at);
      V::StoreBytes(memory + RowOffset(row + b) + f * kTileBytes, scales == nullptr ? w[f] : V::Scale(w[f], scale[f]));
    }
  }
}

// Rows of a tap beyond its last k-block, all in its last step, if the slice has that. row: of the first k-block.
inline void ClearRows(const Panel& panel, int64_t tap, int64_t row, int64_t k_blocks) {
  const int64_t steps = panel.args.image.steps, rest = steps * kTileKBlocks - k_blocks;
  if (rest == 0 || (tap + 1) * steps > panel.slice.end) return;
  int8_t* to = panel.memory() + RowOffset(row + k_blocks);
  for (int f = 0; f < 2; ++f) std::memset(to + f * kTileBytes, 0, rest * kTileDepth);
}

// What of a tap lies in the slice, from the packed order: clusters outermost, taps, k-blocks.
template <class V, int kHalf, bool kTernary>
void FillTap(const Panel& panel, int64_t tap) {
  const TileImage& image = panel.args.image;
  const ClusterArgs clusters = panel.args.clusters;
  constexpr int64_t kBytes = kTernary ? kTernaryBlockBytes : kInt8BlockBytes;
  const int64_t each = clusters.cluster_k_blocks, all = (clusters.clusters - 1) * each + clusters.last_k_blocks;
  const int64_t row = (tap * image.steps - panel.slice.begin) * kTileKBlocks;  // of the tap's first k-block
  const int64_t end = Least(all, (panel.slice.end - panel.slice.begin) * kTileKBlocks - row);
  int64_t b = row < 0 ? -row : 0;
  const int64_t scale_step = kBlockChannels * (clusters.scales_per_tap ? image.taps : 1);
  const int8_t* scales = panel.task.scales;
  int64_t cluster = Least(b / each, clusters.clusters - 1);
  if (scales != nullptr) scales += cluster * scale_step + (clusters.scales_per_tap ? tap * kBlockChannels : 0);
  for (int8_t* const memory = panel.memory(); b < end; ++cluster) {
    const int64_t first = cluster * each, last = cluster + 1 == clusters.clusters ? all : first + each;
    const int64_t until = Least(last, end), before = first * image.taps + tap * (last - first) + b - first;
    const auto* packed = static_cast<const uint8_t*>(panel.task.weights) + before * kBytes;
    FillRows<V, kHalf, kTernary>(memory, row + b, until - b, packed, scales);
    b = until;
    if (scales != nullptr) scales += scale_step;
  }
  ClearRows(panel, tap, row, all);
}

template <class V>
void FillPanel(const Panel& panel) {
  constexpr decltype(&FillTap<V, 0, true>) kFill[2][2] = {{FillTap<V, 0, false>, FillTap<V, 1, false>},
                                                          {FillTap<V, 0, true>, FillTap<V, 1, true>}};
  const auto fill = kFill[panel.args.ternary][panel.field / 2];
  const int64_t steps = panel.args.image.steps;
  for (int64_t tap = panel.slice.begin / steps; tap * steps < panel.slice.end; ++tap) fill(panel, tap);
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
// the panel's channels, the same for each position. totals: of the pair, rows of kPanelChannels.
struct Product {
  const int8_t *first, *second, *panel;
  const int32_t* init;
  int32_t* totals;
};

constexpr int64_t kTotalsRow = kPanelChannels * sizeof(int32_t), kTileTotals = kTilePositions * kPanelChannels;

// Adds a slice to the totals; the first begins with `init`.
template <int kA, int kB, class Tiles>
void Multiply(Tiles& tiles, const TileImage& image, const Slice& slice, const Product& product) {
  const auto [first, second, panel_begin, init, totals] = product;
  const int8_t* panel = panel_begin;
  const bool begins = slice.begin == 0;
  const int32_t *above = begins ? init : totals, *below = begins ? init : totals + kTileTotals;
  const int64_t stride = begins ? 0 : kTotalsRow;
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
  tiles.template Store<0>(totals, kTotalsRow);
  if constexpr (kB > 1) tiles.template Store<1>(totals + 16, kTotalsRow);
  if constexpr (kA > 1) tiles.template Store<2>(totals + kTileTotals, kTotalsRow);
  if constexpr (kA > 1 && kB > 1) tiles.template Store<3>(totals + kTileTotals + 16, kTotalsRow);
}

// prepared.apply_scalar on rows of kPanelChannels.
inline void ApplyScalar(const PreparedEpilogue& prepared, const int32_t* totals, int64_t pixel, int64_t channel,
                        int64_t rows, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r)
    prepared.apply_scalar(prepared, totals + r * kPanelChannels, pixel + r, channel, 1, channels);
}

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
                           panel.memory(), panel.task.constants->init + kFieldChannels * panel.field, totals};
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

// The outputs of the tile at a position before `end`. What a tile reads again is not stored again: the output may lie in
// the residual's memory.
template <class V>
void FinishTile(const Panel& panel, int64_t position, int64_t end, const int32_t* totals, OutputWalk& walk) {
  if (position >= end) return;
  const int32_t* rows = totals + (position - TileStart(panel.args.image, position)) * kPanelChannels;
  walk.Advance(Least(kTilePositions, end - position), [&](int64_t row, int64_t pixel, int64_t count) {
    V::ApplyEpilogue(panel.task, *panel.args.epilogue, panel.field, rows + row * kPanelChannels, pixel, count);
  });
}

// One slice of a panel over the tiles of a task, two at a time; outputs behind the last slice. Multiplying a pair before
// the last one is finished gains nothing (NOTES.md).
template <class V, class Tiles>
void RunPanel(Tiles& tiles, const Panel& panel) {
  constexpr int64_t kPair = 2 * kTilePositions;
  const TileImage& image = panel.args.image;
  const int64_t begin = panel.task.first_tile * kTilePositions;
  const int64_t end = Least(begin + panel.task.tiles * kTilePositions, image.positions);
  const bool finishes = panel.slice.end == image.taps * image.steps;
  OutputWalk walk(image, begin);
  for (int64_t q = begin; q < end; q += kPair) {
    int32_t* totals = panel.args.totals + (panel.is_whole() ? 0 : (q - begin) * kPanelChannels);
    if (finishes) PrefetchResidual(panel, walk, Least(kPair, end - q));
    MultiplyPanel(tiles, panel, q, q + kTilePositions < end, totals);
    if (!finishes) continue;
    FinishTile<V>(panel, q, end, totals, walk);
    FinishTile<V>(panel, q + kTilePositions, end, totals + kTileTotals, walk);
  }
}

template <class Tiles, class V>
void RunTileBlock(const TileArgs& args, const TileTask* tasks, int64_t count) {
  Tiles tiles(WholeTiles());
  const int64_t slices = args.image.slices();
  for (int64_t i = 0; i < count; ++i) {
    const TileTask& task = tasks[i];
    const bool filled = slices == 1 && i > 0 && task.weights == tasks[i - 1].weights;
    for (int field = 0; field * kFieldChannels < task.channels; field += 2) {
      for (int64_t s = 0; s < slices; ++s) {
        const Panel panel = {args, task, SliceAt(args.image, s), field};
        if (!filled) FillPanel<V>(panel);
        RunPanel<V>(tiles, panel);
      }
    }
  }
}

}  // namespace
}  // namespace keras_lowbit
