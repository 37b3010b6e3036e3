// Ternary weights on plain AVX2: sums in 16 bits, twice the products of x86_avx2.h in one instruction.
//
// vpmaddubsw adds two products of an unsigned byte by -1, 0 or 1: at most 510 in absolute value, so that 64 of them
// stay within 16 bits. Only then are they widened and added to the int32 totals.
#pragma once

#include "kernels/simd/x86_avx2_common.h"

namespace keras_lowbit {
namespace {

struct Avx2Narrow : Avx2Common {
  using Totals = __m256i;  // 16 sums of 16 bits, two a channel
  using Weights = __m256i;
  static constexpr int64_t kMostSteps = 64;
  static constexpr bool kScalesWeights = false;  // 255 * 127 * 2 does not fit 16 bits

  static Weights Load(const int8_t* from) { return LoadVector(from); }
  static void Decode(const uint8_t* from, Weights* w) { DecodeBytes(from, w); }
  static __m256i Broadcast(const int8_t* from) { return _mm256_xor_si256(BroadcastFour(from), _mm256_set1_epi8(-128)); }
};

template <class Source, int kRows>
struct Tile<Avx2Narrow, Source, kRows> {
  using V = Avx2Narrow;
  static constexpr int kVectors = Source::kVectors;
  __m256i sum[kRows][kVectors];

  void Clear() {
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v)
        sum[r][v] = _mm256_setzero_si256();
    }
  }

  // totals = the sums + what stood at `from`, whose rows are `stride` apart: `init` at first, then the totals.
  void Flush(int pass, const int32_t* from, int64_t stride, int32_t* totals) {
    KLB_UNROLL for (int r = 0; r < kRows; ++r) {
      KLB_UNROLL for (int v = 0; v < kVectors; ++v) {
        const int channel = Source::Channel(pass, v);
        const __m256i wide = _mm256_madd_epi16(sum[r][v], _mm256_set1_epi16(1));
        V::StoreVector(totals + kBlockChannels * r + channel,
                       _mm256_add_epi32(V::LoadVector(from + stride * r + channel), wide));
      }
    }
    Clear();
  }

  __attribute__((always_inline)) void AddKBlocks(Source& source, const int8_t* const* rows, int64_t from,
                                                 int64_t k_blocks) {
    const int8_t* x[kRows];
    KLB_UNROLL for (int r = 0; r < kRows; ++r)
      x[r] = rows[r] + from;
    for (int64_t at = 0; at < kKBlock * k_blocks; at += kKBlock) {
      typename V::Weights w[kVectors];
      source.Load(w);
      KLB_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256i four = V::Broadcast(x[r] + at);
        KLB_UNROLL for (int v = 0; v < kVectors; ++v) {
          sum[r][v] = _mm256_add_epi16(sum[r][v], _mm256_maddubs_epi16(four, w[v]));
        }
      }
    }
  }

  void ComputePass(const KRange& range, int pass, int32_t* totals) {
    Source source(range.weights, pass);
    Clear();
    const int32_t* from = range.init;
    int64_t steps = 0, stride = 0;
    for (int64_t tap = 0; tap < range.taps; ++tap) {
      for (int64_t b = 0; b < range.k_blocks;) {
        const int64_t left = range.k_blocks - b, room = V::kMostSteps - steps, some = left < room ? left : room;
        AddKBlocks(source, range.rows + tap * range.tap_stride, range.offset + kKBlock * b, some);
        b += some;
        steps += some;
        if (steps < V::kMostSteps) continue;
        Flush(pass, from, stride, totals);
        from = totals, stride = kBlockChannels, steps = 0;
      }
    }
    Flush(pass, from, stride, totals);
  }

  static void Compute(const KRange& range, int32_t* totals) {
    for (int pass = 0; pass < Source::kPasses && Source::Channel(pass, 0) < range.channels; ++pass) {
      Tile tile;
      tile.ComputePass(range, pass, totals);
    }
  }
};

}  // namespace
}  // namespace keras_lowbit
