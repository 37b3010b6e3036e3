// The tile that all vector targets share, written once over the SIMD traits V of each machine (kernels/simd/*.h).
//
// A tile is kRows pixels by 64 channels. Its totals stay in registers while the k-blocks pass by: for each the weights
// of some vectors of channels are loaded (or decoded), then each pixel's four activations are broadcast and multiplied
// with all of them. Everything here has internal linkage: a function compiled for one instruction set must never be
// merged with its twin for another.
//
// SIMD traits are a struct V with
//   kChannels, kBytes                    sums in a vector, and weights in a vector: four for each sum
//   kScalesWeights                       whether Dot takes weights beyond -1, 0, 1
//   kEpilogueInRegisters                 whether ApplyEpilogueToVectors exists
//   Totals, Activations, Weights, Bytes  vector types: sums, four activations for every channel, weights, plain bytes
//   Init, Zero, Add, Store               of Totals; Init begins with the constants of the channels
//   Broadcast(x), Dot(total, x, w)       total + the four products of every channel
//   Load, Decode                         Weights of int8, or four vectors of 2-bit codes
//   DecodeBytes, StoreBytes, SpreadScales, Scale            unpacking 2-bit codes to int8, times scales
//   LoadChannels, Interleave, FromBytes, StoreInterleaved   depthwise layers, see depthwise.h
//   ApplyEpilogueToPixel                 the totals of one pixel in memory to the output
#pragma once

#include <cstdint>

#include "kernels/int8_block/int8_block.h"
#include "kernels/ternary_block/ternary_block.h"

#define KLB_UNROLL _Pragma("GCC unroll 16")

namespace keras_lowbit {
namespace {

// The k-blocks of one tile that share one scale.
struct KRange {
  const int8_t* const* rows;                   // rows[tap * tap_stride + r]
  int64_t tap_stride, taps, k_blocks, offset;  // offset: bytes from a row's start to its first channel
  const void* weights;
  const int32_t* init;  // [kBlockChannels]
  int64_t channels;     // totals beyond them need not be computed
};

// How far ahead streams of weights are asked for; other distances made no difference (NOTES.md).
constexpr int64_t kPrefetchBytes = 2048;

// int8 weights from memory: kVectors vectors of channels at a time, the rest in further passes.
template <class V, int kCount>
struct Int8Source {
  static constexpr int kVectors = kCount;
  static constexpr int kPasses = kBlockChannels / (V::kChannels * kCount);
  static constexpr int Channel(int pass, int v) { return (pass * kCount + v) * V::kChannels; }
  Int8Source(const void* weights, int pass) : next(static_cast<const int8_t*>(weights) + kKBlock * Channel(pass, 0)) {}
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
  static constexpr int kPasses = kTernaryBlockBytes / V::kBytes;
  static constexpr int Channel(int pass, int v) { return kFieldChannels * v + pass * V::kChannels; }
  TernarySource(const void* weights, int pass) : next(static_cast<const uint8_t*>(weights) + pass * V::kBytes) {}
  void Load(typename V::Weights* w) {
    V::Decode(next, w);
    next += kTernaryBlockBytes;
  }
  // A row of a large dense layer streams from memory; the machine's prefetcher stops at every page.
  void Prefetch() const { __builtin_prefetch(next + kPrefetchBytes); }
  const uint8_t* next;
};

// 2-bit weights times the scales of small clusters: decoded and multiplied in registers. For one tap, where
// the k-blocks of a cluster follow one another. Not for machines that need weights of -1, 0, 1.
struct ScaledCodes {
  const uint8_t* codes;
  const int8_t* scales;  // [clusters][kBlockChannels]
  int64_t cluster_k_blocks;
};

template <class V>
struct ScaledTernarySource {
  static constexpr int kVectors = 4;
  static constexpr int kPasses = kTernaryBlockBytes / V::kBytes;
  static constexpr int Channel(int pass, int v) { return TernarySource<V>::Channel(pass, v); }
  ScaledTernarySource(const void* weights, int pass)
      : scaled(*static_cast<const ScaledCodes*>(weights)), codes(scaled.codes, pass), pass(pass) {}
  void Load(typename V::Weights* w) {
    if (left == 0) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v)
        scale[v] = V::SpreadScales(scaled.scales + Channel(pass, v));
      scaled.scales += kBlockChannels;
      left = scaled.cluster_k_blocks;
    }
    --left;
    codes.Load(w);
    KLB_UNROLL for (int v = 0; v < kVectors; ++v)
      w[v] = V::Scale(w[v], scale[v]);
  }
  void Prefetch() const {
    codes.Prefetch();
    __builtin_prefetch(scaled.scales + kPrefetchBytes);
  }
  ScaledCodes scaled;
  TernarySource<V> codes;
  int pass;
  int64_t left = 0;
  typename V::Bytes scale[4];
};

// Few totals leave the multipliers waiting for their own last result; then the k-blocks take turns on several sets.
constexpr int Chains(int totals) { return totals <= 4 ? 4 : totals <= 8 ? 2 : 1; }

template <class V, class Source, int kRows>
struct Tile {
  static constexpr int kVectors = Source::kVectors;
  static constexpr int kChains = Chains(kRows * kVectors);
  typename V::Totals total[kChains][kRows][kVectors];

  void InitAccumulators(const KRange& range, int pass) {
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v) {
        total[0][r][v] = V::Init(range.init + Source::Channel(pass, v));
        KLB_UNROLL for (int i = 1; i < kChains; ++i)
          total[i][r][v] = V::Zero();
      }
    }
  }

  __attribute__((always_inline)) void AddKBlock(Source& source, const int8_t* const* x, int64_t at, int chain) {
    typename V::Weights w[kVectors];
    source.Load(w);
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      const typename V::Activations four = V::Broadcast(x[r] + at);
      KLB_UNROLL for (int v = 0; v < kVectors; ++v)
        total[chain][r][v] = V::Dot(total[chain][r][v], four, w[v]);
    }
  }

  __attribute__((always_inline)) void AddTap(Source& source, const int8_t* const* rows, int64_t offset,
                                             int64_t k_blocks) {
    const int8_t* x[kRows];
    KLB_UNROLL for (int r = 0; r < kRows; ++r)
      x[r] = rows[r] + offset;
    int64_t at = 0;
    const int64_t end = kKBlock * k_blocks, whole = kKBlock * (k_blocks - k_blocks % kChains);
    for (; at < whole; at += kKBlock * kChains) {
      KLB_UNROLL for (int i = 0; i < kChains; ++i) {
        if constexpr (kChains > 1) source.Prefetch();
        AddKBlock(source, x, at + kKBlock * i, i);
      }
    }
    if constexpr (kChains > 1) {
      for (; at < end; at += kKBlock) AddKBlock(source, x, at, 0);
    }
  }

  // The accumulators of all chains, added into the first.
  void SumChains() {
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
        V::Store(totals + kBlockChannels * r + Source::Channel(pass, v), total[0][r][v]);
      }
    }
  }

  // The epilogue, straight from the registers to the output, where one pass holds all the channels of a row: four
  // vectors at a time, of several rows where they are narrow.
  static constexpr int kTogether = kVectors <= 2 ? 4 / kVectors : 1;
  void ApplyEpilogue(const BlockArgs& args, int64_t pixel) const {
    KLB_UNROLL for (int r = 0; r < kRows; r += kTogether) {
      typename V::Totals y[4] = {};
      KLB_UNROLL for (int i = 0; i < kTogether * kVectors; ++i) {
        if (r + i / kVectors < kRows) y[i] = total[0][r + i / kVectors][i % kVectors];
      }
      const int64_t position = (args.first_pixel + pixel + r) * args.epilogue->pixel_stride + args.first_channel;
      constexpr int kWide = 4 / kTogether;  // three vectors go as four
      V::template ApplyEpilogueToVectors<kWide>(*args.constants, *args.epilogue, y, position,
                                                kRows - r < kTogether ? kRows - r : kTogether, args.channels);
    }
  }

  static void ComputeWithEpilogue(const KRange& range, const BlockArgs& args, int64_t pixel) {
    Tile tile;
    tile.InitAccumulators(range, 0);
    Source source(range.weights, 0);
    for (int64_t tap = 0; tap < range.taps; ++tap) {
      tile.AddTap(source, range.rows + tap * range.tap_stride, range.offset, range.k_blocks);
    }
    tile.SumChains();
    tile.ApplyEpilogue(args, pixel);
  }

  // totals: [kRows][kBlockChannels].
  static void Compute(const KRange& range, int32_t* totals) {
    for (int pass = 0; pass < Source::kPasses && Source::Channel(pass, 0) < range.channels; ++pass) {
      Tile tile;
      tile.InitAccumulators(range, pass);
      Source source(range.weights, pass);
      for (int64_t tap = 0; tap < range.taps; ++tap) {
        tile.AddTap(source, range.rows + tap * range.tap_stride, range.offset, range.k_blocks);
      }
      tile.SumChains();
      tile.Store(pass, totals);
    }
  }
};

// The tile of 1 <= rows <= kRows pixels.
template <class V, class Source, int kRows>
void ComputeTile(const KRange& range, int64_t rows, int32_t* totals) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return ComputeTile<V, Source, kRows - 1>(range, rows, totals);
  }
  Tile<V, Source, kRows>::Compute(range, totals);
}

// Full tiles, and at the end two of about the same height: one of a single row would wait for itself.
inline int64_t NextRows(int64_t left, int64_t most) {
  return left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
}

template <class V>
void ApplyEpilogueToTile(const BlockArgs& args, const int32_t* totals, int64_t pixel, int64_t rows) {
  const PreparedEpilogue& prepared = *args.epilogue;
  pixel += args.first_pixel;
  if (prepared.fast == PreparedEpilogue::Fast::kNo) {
    prepared.apply_scalar(prepared, totals, pixel, args.first_channel, rows, args.channels);
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t position = (pixel + r) * prepared.pixel_stride + args.first_channel;
    V::ApplyEpilogueToPixel(*args.constants, prepared, totals + kBlockChannels * r, position, args.channels);
  }
}

template <class V, class Source, int kRows>
void ComputeTileWithEpilogue(const KRange& range, int64_t rows, const BlockArgs& args, int64_t pixel) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return ComputeTileWithEpilogue<V, Source, kRows - 1>(range, rows, args, pixel);
  }
  Tile<V, Source, kRows>::ComputeWithEpilogue(range, args, pixel);
}

// The totals of one tile to the output, by way of memory where the machine has no room for more.
template <class V, class Source, int kRows>
void RunTile(const KRange& range, int64_t rows, const BlockArgs& args, int64_t pixel, int32_t* totals) {
  if constexpr (V::kEpilogueInRegisters) {
    const bool one_pass = args.channels <= V::kChannels * Source::kVectors;
    if (one_pass && args.epilogue->fast == PreparedEpilogue::Fast::kFixed) {
      return ComputeTileWithEpilogue<V, Source, kRows>(range, rows, args, pixel);
    }
  }
  ComputeTile<V, Source, kRows>(range, rows, totals);
  ApplyEpilogueToTile<V>(args, totals, pixel, rows);
}

// The residual's codes are a cache line here and there, which no prefetcher follows: asked for two tiles ahead.
inline void PrefetchResidual(const BlockArgs& args, int64_t pixel, int64_t rows) {
  if (!args.epilogue->has_residual) return;
  const int64_t stride = args.epilogue->pixel_stride;
  const int8_t* codes =
      args.epilogue->definition->residual.codes + (args.first_pixel + pixel) * stride + args.first_channel;
  const int64_t end = args.pixels - pixel < rows ? args.pixels - pixel : rows;
  for (int64_t r = 0; r < end; ++r) __builtin_prefetch(codes + r * stride);
}

template <class V, class Source, int kRows>
void RunInt8Block(const BlockArgs& args) {
  alignas(kAlignment) int32_t totals[kRows * kBlockChannels] = {};
  for (int64_t p = 0; p < args.pixels;) {
    const int64_t rows = NextRows(args.pixels - p, kRows);
    const KRange range = {args.rows + p, args.tap_stride,      args.taps,    args.k_blocks, args.channel_offset,
                          args.weights,  args.constants->init, args.channels};
    PrefetchResidual(args, p + 2 * kRows, kRows);
    RunTile<V, Source, kRows>(range, rows, args, p, totals);
    p += rows;
  }
}

// totals += scale * partial, [rows][kBlockChannels]; no scales are ones.
inline void AddScaled(const int32_t* partial, const int8_t* scales, int64_t rows, int32_t* totals) {
  if (scales == nullptr) {
    for (int64_t i = 0; i < kBlockChannels * rows; ++i) {
      totals[i] = static_cast<int32_t>(static_cast<uint32_t>(totals[i]) + static_cast<uint32_t>(partial[i]));
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < kBlockChannels; ++c) {
      totals[kBlockChannels * r + c] = static_cast<int32_t>(static_cast<uint32_t>(totals[kBlockChannels * r + c]) +
                                                            static_cast<uint32_t>(scales[c]) *
                                                                static_cast<uint32_t>(partial[kBlockChannels * r + c]));
    }
  }
}

// The clusters one after another, each with its own partial sums. Scales per tap: each tap is a range of its own.
template <class V, int kRows>
void AddClusters(const BlockArgs& args, const ClusterArgs& clusters, int64_t p, int64_t rows, int32_t* totals) {
  alignas(kAlignment) static constexpr int32_t kZeros[kBlockChannels] = {};
  alignas(kAlignment) int32_t partial[kRows * kBlockChannels] = {};
  const auto* codes = static_cast<const uint8_t*>(args.weights);
  const int8_t* scales = clusters.scales;
  const int64_t steps = clusters.scales_per_tap ? args.taps : 1, taps = args.taps / steps;
  for (int64_t cluster = 0; cluster < clusters.clusters; ++cluster) {
    const int64_t k_blocks = cluster + 1 == clusters.clusters ? clusters.last_k_blocks : clusters.cluster_k_blocks;
    const int64_t offset = args.channel_offset + kKBlock * cluster * clusters.cluster_k_blocks;
    for (int64_t step = 0; step < steps; ++step, codes += taps * k_blocks * kTernaryBlockBytes) {
      const KRange range = {args.rows + step * args.tap_stride + p,
                            args.tap_stride,
                            taps,
                            k_blocks,
                            offset,
                            codes,
                            kZeros,
                            args.channels};
      ComputeTile<V, TernarySource<V>, kRows>(range, rows, partial);
      AddScaled(partial, scales, rows, totals);
      if (scales != nullptr) scales += kBlockChannels;
    }
  }
}

// Up to this many k-blocks a cluster's weights are multiplied rather than its sums.
constexpr int64_t kSmallCluster = 4;

template <class V, int kRows>
void RunTernaryBlock(const BlockArgs& args, const ClusterArgs& clusters) {
  if constexpr (V::kScalesWeights) {
    if (clusters.scales != nullptr && args.taps == 1 && clusters.cluster_k_blocks <= kSmallCluster) {
      const ScaledCodes scaled = {static_cast<const uint8_t*>(args.weights), clusters.scales,
                                  clusters.cluster_k_blocks};
      BlockArgs with = args;
      with.weights = &scaled;
      return RunInt8Block<V, ScaledTernarySource<V>, kRows>(with);
    }
  }
  alignas(kAlignment) int32_t totals[kRows * kBlockChannels] = {};
  for (int64_t p = 0; p < args.pixels;) {
    const int64_t rows = NextRows(args.pixels - p, kRows);
    if (clusters.scales == nullptr && clusters.clusters == 1) {
      const KRange range = {args.rows + p, args.tap_stride,      args.taps,    args.k_blocks, args.channel_offset,
                            args.weights,  args.constants->init, args.channels};
      RunTile<V, TernarySource<V>, kRows>(range, rows, args, p, totals);
    } else {
      for (int64_t i = 0; i < kBlockChannels * rows; ++i) totals[i] = args.constants->init[i % kBlockChannels];
      AddClusters<V, kRows>(args, clusters, p, rows, totals);
      ApplyEpilogueToTile<V>(args, totals, p, rows);
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
    for (int64_t b = 0; b < args.k_blocks; ++b) {
      typename V::Bytes w[4];
      V::DecodeBytes(args.codes + kTernaryBlockBytes * b + pass * V::kBytes, w);
      int8_t* to = args.weights + kInt8BlockBytes * b;
      KLB_UNROLL for (int v = 0; v < 4; ++v) {
        V::StoreBytes(to + kKBlock * Source::Channel(pass, v),
                      args.scales == nullptr ? w[v] : V::Scale(w[v], scale[v]));
      }
    }
  }
}

}  // namespace
}  // namespace keras_lowbit
