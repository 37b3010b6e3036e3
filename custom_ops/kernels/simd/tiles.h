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

// Panels: [panel][tap][step][2 tiles][kTileKBlocks rows][16 channels][kKBlock]. Row r of a tap's tiles is its k-block r;
// a field is 16 channels.
inline int64_t PanelRow(const TileImage& image, int64_t tap, int64_t k_block, int field) {
  const int64_t step = tap * image.steps + k_block / kTileKBlocks, tile = 2 * step + field % 2;
  return field / 2 * image.panel_bytes + tile * kTileBytes + k_block % kTileKBlocks * kTileDepth;
}

inline int Fields(int64_t channels) { return static_cast<int>((channels + kFieldChannels - 1) / kFieldChannels); }

// k-blocks of one tap from `first` on, from the packed layout to their rows.
template <class V>
void FillRows(const TileArgs& args, int64_t tap, int64_t first, int64_t k_blocks, const uint8_t* packed,
              const int8_t* scales, int fields) {
  typename V::Bytes scale[4] = {};
  KLB_UNROLL for (int f = 0; f < 4; ++f) {
    if (scales != nullptr) scale[f] = V::SpreadScales(scales + kFieldChannels * f);
  }
  for (int64_t b = 0; b < k_blocks; ++b) {
    typename V::Bytes w[4];
    if (args.ternary) {
      V::DecodeBytes(packed + kTernaryBlockBytes * b, w);
    } else {
      KLB_UNROLL for (int f = 0; f < 4; ++f)
        w[f] = V::Load(reinterpret_cast<const int8_t*>(packed) + kInt8BlockBytes * b + kTernaryBlockBytes * f);
    }
    KLB_UNROLL for (int f = 0; f < 4; ++f) {
      if (f < fields) {
        V::StoreBytes(args.panels + PanelRow(args.image, tap, first + b, f),
                      scales == nullptr ? w[f] : V::Scale(w[f], scale[f]));
      }
    }
  }
}

// Rows beyond the last k-block of each tap.
inline void ClearRows(const TileArgs& args, int64_t k_blocks, int fields) {
  const int64_t count = args.image.steps * kTileKBlocks - k_blocks;
  for (int64_t tap = 0; count > 0 && tap < args.image.taps; ++tap) {
    for (int f = 0; f < fields; ++f)
      std::memset(args.panels + PanelRow(args.image, tap, k_blocks, f), 0, count * kTileDepth);
  }
}

// The panels of a block, in the packed order: clusters outermost, taps, k-blocks.
template <class V>
void FillPanels(const TileArgs& args, const TileTask& task) {
  const ClusterArgs& clusters = args.clusters;
  const int fields = Fields(task.channels);
  const auto* packed = static_cast<const uint8_t*>(task.weights);
  const int8_t* scales = task.scales;
  int64_t first = 0;
  for (int64_t cluster = 0; cluster < clusters.clusters; ++cluster) {
    const int64_t k_blocks = cluster + 1 == clusters.clusters ? clusters.last_k_blocks : clusters.cluster_k_blocks;
    for (int64_t tap = 0; tap < args.image.taps; ++tap) {
      FillRows<V>(args, tap, first, k_blocks, packed, scales, fields);
      packed += k_blocks * (args.ternary ? kTernaryBlockBytes : kInt8BlockBytes);
      if (scales != nullptr && (clusters.scales_per_tap || tap + 1 == args.image.taps)) scales += kBlockChannels;
    }
    first += k_blocks;
  }
  ClearRows(args, first, fields);
}

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

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

// Totals of kA x kB tiles: those of the positions at `first` and `second` by one or two fields of a panel. init: of the
// panel's channels, the same for each position. totals: rows of kBlockChannels.
template <int kA, int kB, class Tiles>
void Multiply(Tiles& tiles, const TileImage& image, const int8_t* first, const int8_t* second, const int8_t* panel,
              const int32_t* init, int32_t* totals) {
  constexpr int64_t kRow = kBlockChannels * sizeof(int32_t);
  tiles.template Load<0>(init, 0);
  if constexpr (kB > 1) tiles.template Load<1>(init + 16, 0);
  if constexpr (kA > 1) tiles.template Load<2>(init, 0);
  if constexpr (kA > 1 && kB > 1) tiles.template Load<3>(init + 16, 0);
  for (int64_t tap = 0; tap < image.taps; ++tap) {
    int64_t at = image.tap_offsets[tap];
    for (int64_t step = 0; step < image.steps; ++step, at += kTileDepth, panel += 2 * kTileBytes) {
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
  if constexpr (kA > 1) tiles.template Store<2>(totals + kTilePositions * kBlockChannels, kRow);
  if constexpr (kA > 1 && kB > 1) tiles.template Store<3>(totals + kTilePositions * kBlockChannels + 16, kRow);
}

// 32 channels, or 16 where the block ends, of a block over its tiles.
struct Panel {
  const TileArgs& args;
  const TileTask& task;
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
  const int8_t* first = image.pixels + TileStart(image, position) * image.pixel_bytes;
  const int8_t* second = image.pixels + TileStart(image, position + kTilePositions) * image.pixel_bytes;
  const int8_t* weights = panel.args.panels + panel.field / 2 * image.panel_bytes;
  const int32_t* init = panel.task.constants->init + kFieldChannels * panel.field;
  totals += kFieldChannels * panel.field;
  if (two && panel.is_wide()) return Multiply<2, 2>(tiles, image, first, second, weights, init, totals);
  if (two) return Multiply<2, 1>(tiles, image, first, second, weights, init, totals);
  if (panel.is_wide()) return Multiply<1, 2>(tiles, image, first, second, weights, init, totals);
  Multiply<1, 1>(tiles, image, first, second, weights, init, totals);
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

// One panel over the tiles of a task, two at a time. What a tile reads again is not stored again: the output may lie in
// the residual's memory.
template <class V, class Tiles>
void RunPanel(Tiles& tiles, const Panel& panel, int32_t* totals) {
  const TileImage& image = panel.args.image;
  const int64_t begin = panel.task.first_tile * kTilePositions;
  const int64_t end = Least(begin + panel.task.tiles * kTilePositions, image.positions);
  OutputWalk walk(image, begin);
  for (int64_t q = begin; q < end; q += 2 * kTilePositions) {
    PrefetchResidual(panel, walk, Least(2 * kTilePositions, end - q));
    MultiplyPanel(tiles, panel, q, q + kTilePositions < end, totals);
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
  alignas(kAlignment) int32_t totals[(2 * kTilePositions + 1) * kBlockChannels] = {};  // vectors read a row further
  for (int64_t i = 0; i < count; ++i) {
    const TileTask& task = tasks[i];
    if (i == 0 || task.weights != tasks[i - 1].weights) FillPanels<V>(args, task);
    for (int field = 0; field < Fields(task.channels); field += 2) RunPanel<V>(tiles, {args, task, field}, totals);
  }
}

}  // namespace
}  // namespace keras_lowbit
