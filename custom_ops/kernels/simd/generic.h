// The tile that all vector targets share, written once over a small vocabulary V of each machine (kernels/simd/*.h).
//
// A tile is kRows pixels by 64 channels. Its totals stay in registers while the k groups pass by: for each group
// the weights of some vectors of channels are loaded (or decoded), then each pixel's four activations are broadcast
// and multiplied with all of them. Everything here has internal linkage: a function compiled for one
// instruction set must never be merged with its twin for another.
#pragma once

#include <cstdint>

#include "kernels/int8_block/int8_block.h"
#include "kernels/ternary_block/ternary_block.h"

#define KLB_UNROLL _Pragma("GCC unroll 16")

namespace keras_lowbit {
namespace {

// The k groups of one tile that share one scale.
struct Run {
  const int8_t* const* rows;                 // rows[tap * tap_stride + r]
  int64_t tap_stride, taps, groups, offset;  // offset: bytes from a row's start to its first channel
  const void* weights;
  const int32_t* init;  // [64]
  int64_t channels;     // totals beyond them need not be computed
};

// int8 weights from memory: kVectors vectors of channels at a time, the rest in further passes.
template <class V, int kCount>
struct Int8Source {
  static constexpr int kVectors = kCount;
  static constexpr int kPasses = 64 / (V::kChannels * kCount);
  static constexpr int Channel(int pass, int v) { return (pass * kCount + v) * V::kChannels; }
  Int8Source(const void* weights, int pass) : next(static_cast<const int8_t*>(weights) + 4 * Channel(pass, 0)) {}
  void Load(typename V::Weights* w) {
    KLB_UNROLL for (int v = 0; v < kCount; ++v)
      w[v] = V::Load(next + v * V::kBytes);
    next += kInt8BlockBytes;
  }
  void Prefetch() const {}  // four cache lines in a row: the machine's own prefetcher keeps up
  const int8_t* next;
};

// 2-bit weights: one vector of bytes holds four vectors of channels, 16 channels apart.
template <class V>
struct TernarySource {
  static constexpr int kVectors = 4;
  static constexpr int kPasses = 64 / V::kBytes;
  static constexpr int Channel(int pass, int v) { return 16 * v + pass * V::kChannels; }
  TernarySource(const void* weights, int pass) : next(static_cast<const uint8_t*>(weights) + pass * V::kBytes) {}
  void Load(typename V::Weights* w) {
    V::Decode(next, w);
    next += kTernaryBlockBytes;
  }
  // A row of a large dense layer streams from memory; the machine's prefetcher stops at every page.
  void Prefetch() const { __builtin_prefetch(next + 2048); }
  const uint8_t* next;
};

// 2-bit weights times the scales of small clusters: decoded and multiplied in registers. For one tap, where
// the k groups of a cluster follow one another. Not for machines that need weights of -1, 0, 1.
struct ScaledCodes {
  const uint8_t* codes;
  const int8_t* scales;  // [clusters][64]
  int64_t cluster_groups;
};

template <class V>
struct ScaledTernarySource {
  static constexpr int kVectors = 4;
  static constexpr int kPasses = 64 / V::kBytes;
  static constexpr int Channel(int pass, int v) { return TernarySource<V>::Channel(pass, v); }
  ScaledTernarySource(const void* weights, int pass)
      : scaled(*static_cast<const ScaledCodes*>(weights)), codes(scaled.codes, pass), pass(pass) {}
  void Load(typename V::Weights* w) {
    if (left == 0) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v)
        scale[v] = V::SpreadScales(scaled.scales + Channel(pass, v));
      scaled.scales += 64;
      left = scaled.cluster_groups;
    }
    --left;
    codes.Load(w);
    KLB_UNROLL for (int v = 0; v < kVectors; ++v)
      w[v] = V::Scale(w[v], scale[v]);
  }
  void Prefetch() const {
    codes.Prefetch();
    __builtin_prefetch(scaled.scales + 2048);
  }
  ScaledCodes scaled;
  TernarySource<V> codes;
  int pass;
  int64_t left = 0;
  typename V::Bytes scale[4];
};

// Few totals leave the multipliers waiting for their own last result; then the k groups take turns on several sets.
constexpr int Chains(int totals) { return totals <= 4 ? 4 : totals <= 8 ? 2 : 1; }

template <class V, class Source, int kRows>
struct Tile {
  static constexpr int kVectors = Source::kVectors;
  static constexpr int kChains = Chains(kRows * kVectors);
  typename V::Totals total[kChains][kRows][kVectors];

  void Start(const Run& run, int pass) {
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v) {
        total[0][r][v] = V::Start(run.init + Source::Channel(pass, v));
        KLB_UNROLL for (int i = 1; i < kChains; ++i)
          total[i][r][v] = V::Zero();
      }
    }
  }

  __attribute__((always_inline)) void AddGroup(Source& source, const int8_t* const* x, int64_t at, int chain) {
    typename V::Weights w[kVectors];
    source.Load(w);
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      const typename V::Activations four = V::Broadcast(x[r] + at);
      KLB_UNROLL for (int v = 0; v < kVectors; ++v)
        total[chain][r][v] = V::Dot(total[chain][r][v], four, w[v]);
    }
  }

  __attribute__((always_inline)) void AddTap(Source& source, const int8_t* const* rows, int64_t offset,
                                             int64_t groups) {
    const int8_t* x[kRows];
    KLB_UNROLL for (int r = 0; r < kRows; ++r)
      x[r] = rows[r] + offset;
    int64_t at = 0;
    const int64_t end = 4 * groups, whole = 4 * (groups - groups % kChains);
    for (; at < whole; at += 4 * kChains) {
      KLB_UNROLL for (int i = 0; i < kChains; ++i) {
        if constexpr (kChains > 1) source.Prefetch();
        AddGroup(source, x, at + 4 * i, i);
      }
    }
    if constexpr (kChains > 1) {
      for (; at < end; at += 4) AddGroup(source, x, at, 0);
    }
  }

  // All chains into the first.
  void Gather() {
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v) {
        KLB_UNROLL for (int i = 1; i < kChains; ++i)
          total[0][r][v] = V::Add(total[0][r][v], total[i][r][v]);
      }
    }
  }

  void Store(int pass, int32_t* totals) const {
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v) {
        V::Store(totals + 64 * r + Source::Channel(pass, v), total[0][r][v]);
      }
    }
  }

  // Straight from the registers to the output, where one pass holds all the channels of a row: four vectors at a time,
  // of several rows where they are narrow.
  static constexpr int kTogether = kVectors <= 2 ? 4 / kVectors : 1;
  void Finish(const BlockArgs& args, int64_t pixel) const {
    KLB_UNROLL for (int r = 0; r < kRows; r += kTogether) {
      typename V::Totals y[4] = {};
      KLB_UNROLL for (int i = 0; i < kTogether * kVectors; ++i) {
        if (r + i / kVectors < kRows) y[i] = total[0][r + i / kVectors][i % kVectors];
      }
      const int64_t position = (args.first_pixel + pixel + r) * args.output->pixel_stride + args.first_channel;
      constexpr int kWide = 4 / kTogether;  // three vectors go as four
      V::template FinishTotals<kWide>(*args.constants, *args.output, y, position,
                                      kRows - r < kTogether ? kRows - r : kTogether, args.channels);
    }
  }

  static void ComputeAndFinish(const Run& run, const BlockArgs& args, int64_t pixel) {
    Tile tile;
    tile.Start(run, 0);
    Source source(run.weights, 0);
    for (int64_t tap = 0; tap < run.taps; ++tap) {
      tile.AddTap(source, run.rows + tap * run.tap_stride, run.offset, run.groups);
    }
    tile.Gather();
    tile.Finish(args, pixel);
  }

  // totals: [kRows][64].
  static void Compute(const Run& run, int32_t* totals) {
    for (int pass = 0; pass < Source::kPasses && Source::Channel(pass, 0) < run.channels; ++pass) {
      Tile tile;
      tile.Start(run, pass);
      Source source(run.weights, pass);
      for (int64_t tap = 0; tap < run.taps; ++tap) {
        tile.AddTap(source, run.rows + tap * run.tap_stride, run.offset, run.groups);
      }
      tile.Gather();
      tile.Store(pass, totals);
    }
  }
};

// The tile of 1 <= rows <= kRows pixels.
template <class V, class Source, int kRows>
void ComputeTile(const Run& run, int64_t rows, int32_t* totals) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return ComputeTile<V, Source, kRows - 1>(run, rows, totals);
  }
  Tile<V, Source, kRows>::Compute(run, totals);
}

// Full tiles, and at the end two of about the same height: one of a single row would wait for itself.
inline int64_t NextRows(int64_t left, int64_t most) {
  return left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
}

template <class V>
void FinishTile(const BlockArgs& args, const int32_t* totals, int64_t pixel, int64_t rows) {
  const OutputStage& stage = *args.output;
  pixel += args.first_pixel;
  if (stage.fast == OutputStage::Fast::kNo) {
    stage.finish(stage, totals, pixel, args.first_channel, rows, args.channels);
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t position = (pixel + r) * stage.pixel_stride + args.first_channel;
    V::FinishRow(*args.constants, stage, totals + 64 * r, position, args.channels);
  }
}

template <class V, class Source, int kRows>
void ComputeAndFinishTile(const Run& run, int64_t rows, const BlockArgs& args, int64_t pixel) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return ComputeAndFinishTile<V, Source, kRows - 1>(run, rows, args, pixel);
  }
  Tile<V, Source, kRows>::ComputeAndFinish(run, args, pixel);
}

// The totals of one tile to the output, by way of memory where the machine has no room for more.
template <class V, class Source, int kRows>
void RunTile(const Run& run, int64_t rows, const BlockArgs& args, int64_t pixel, int32_t* totals) {
  if constexpr (V::kFinishesInRegisters) {
    const bool one_pass = args.channels <= V::kChannels * Source::kVectors;
    if (one_pass && args.output->fast == OutputStage::Fast::kFixed) {
      return ComputeAndFinishTile<V, Source, kRows>(run, rows, args, pixel);
    }
  }
  ComputeTile<V, Source, kRows>(run, rows, totals);
  FinishTile<V>(args, totals, pixel, rows);
}

// The residual's codes are a line here and a line there, which no prefetcher follows: asked for two tiles ahead.
inline void PrefetchResidual(const BlockArgs& args, int64_t pixel, int64_t rows) {
  if (!args.output->has_residual) return;
  const int64_t stride = args.output->pixel_stride;
  const int8_t* codes =
      args.output->epilogue->residual.codes + (args.first_pixel + pixel) * stride + args.first_channel;
  const int64_t end = args.pixels - pixel < rows ? args.pixels - pixel : rows;
  for (int64_t r = 0; r < end; ++r) __builtin_prefetch(codes + r * stride);
}

template <class V, class Source, int kRows>
void RunInt8Block(const BlockArgs& args) {
  alignas(64) int32_t totals[kRows * 64] = {};
  for (int64_t p = 0; p < args.pixels;) {
    const int64_t rows = NextRows(args.pixels - p, kRows);
    const Run run = {args.rows + p, args.tap_stride,      args.taps,    args.groups, args.channel_offset,
                     args.weights,  args.constants->init, args.channels};
    PrefetchResidual(args, p + 2 * kRows, kRows);
    RunTile<V, Source, kRows>(run, rows, args, p, totals);
    p += rows;
  }
}

// totals += scale * partial, [rows][64]; no scales are ones.
inline void AddScaled(const int32_t* partial, const int8_t* scales, int64_t rows, int32_t* totals) {
  if (scales == nullptr) {
    for (int64_t i = 0; i < 64 * rows; ++i) {
      totals[i] = static_cast<int32_t>(static_cast<uint32_t>(totals[i]) + static_cast<uint32_t>(partial[i]));
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < 64; ++c) {
      totals[64 * r + c] =
          static_cast<int32_t>(static_cast<uint32_t>(totals[64 * r + c]) +
                               static_cast<uint32_t>(scales[c]) * static_cast<uint32_t>(partial[64 * r + c]));
    }
  }
}

// The clusters one after another, each with its own partial sums. Scales per tap: each tap is a run of its own.
template <class V, int kRows>
void AddClusters(const BlockArgs& args, const ClusterArgs& clusters, int64_t p, int64_t rows, int32_t* totals) {
  alignas(64) static constexpr int32_t kZeros[64] = {};
  alignas(64) int32_t partial[kRows * 64] = {};
  const auto* codes = static_cast<const uint8_t*>(args.weights);
  const int8_t* scales = clusters.scales;
  const int64_t steps = clusters.scales_per_tap ? args.taps : 1, taps = args.taps / steps;
  for (int64_t cluster = 0; cluster < clusters.clusters; ++cluster) {
    const int64_t groups = cluster + 1 == clusters.clusters ? clusters.last_groups : clusters.cluster_groups;
    const int64_t offset = args.channel_offset + 4 * cluster * clusters.cluster_groups;
    for (int64_t step = 0; step < steps; ++step, codes += taps * groups * kTernaryBlockBytes) {
      const Run run = {
          args.rows + step * args.tap_stride + p, args.tap_stride, taps, groups, offset, codes, kZeros, args.channels};
      ComputeTile<V, TernarySource<V>, kRows>(run, rows, partial);
      AddScaled(partial, scales, rows, totals);
      if (scales != nullptr) scales += 64;
    }
  }
}

// Up to this many k groups a cluster's weights are multiplied rather than its sums.
constexpr int64_t kSmallCluster = 4;

template <class V, int kRows>
void RunTernaryBlock(const BlockArgs& args, const ClusterArgs& clusters) {
  if constexpr (V::kScalesWeights) {
    if (clusters.scales != nullptr && args.taps == 1 && clusters.cluster_groups <= kSmallCluster) {
      const ScaledCodes scaled = {static_cast<const uint8_t*>(args.weights), clusters.scales, clusters.cluster_groups};
      BlockArgs with = args;
      with.weights = &scaled;
      return RunInt8Block<V, ScaledTernarySource<V>, kRows>(with);
    }
  }
  alignas(64) int32_t totals[kRows * 64] = {};
  for (int64_t p = 0; p < args.pixels;) {
    const int64_t rows = NextRows(args.pixels - p, kRows);
    if (clusters.scales == nullptr && clusters.clusters == 1) {
      const Run run = {args.rows + p, args.tap_stride,      args.taps,    args.groups, args.channel_offset,
                       args.weights,  args.constants->init, args.channels};
      RunTile<V, TernarySource<V>, kRows>(run, rows, args, p, totals);
    } else {
      for (int64_t i = 0; i < 64 * rows; ++i) totals[i] = args.constants->init[i % 64];
      AddClusters<V, kRows>(args, clusters, p, rows, totals);
      FinishTile<V>(args, totals, p, rows);
    }
    p += rows;
  }
}

// Codes to int8 weights, times the scales of their channels.
template <class V>
void Unpack(const UnpackArgs& args) {
  using Source = TernarySource<V>;
  for (int pass = 0; pass < Source::kPasses; ++pass) {
    typename V::Bytes scale[4] = {};
    KLB_UNROLL for (int v = 0; v < 4; ++v) {
      if (args.scales != nullptr) scale[v] = V::SpreadScales(args.scales + Source::Channel(pass, v));
    }
    for (int64_t g = 0; g < args.groups; ++g) {
      typename V::Bytes w[4];
      V::DecodeBytes(args.codes + kTernaryBlockBytes * g + pass * V::kBytes, w);
      int8_t* to = args.weights + kInt8BlockBytes * g;
      KLB_UNROLL for (int v = 0; v < 4; ++v) {
        V::StoreBytes(to + 4 * Source::Channel(pass, v), args.scales == nullptr ? w[v] : V::Scale(w[v], scale[v]));
      }
    }
  }
}

}  // namespace
}  // namespace keras_lowbit
