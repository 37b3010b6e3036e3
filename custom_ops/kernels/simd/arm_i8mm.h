// SIMD traits and the tile of Armv8.6 with int8 matrix multiplication: `smmla` multiplies two pixels by two channels,
// 8 products each, so a tile takes its pixels in pairs and its k-blocks two at a time.
#pragma once

#include "kernels/simd/arm_dotprod.h"

namespace keras_lowbit {
namespace {

// What is not multiplied in pairs runs on the dot product: a tile of one pixel would waste half of every product.
struct ArmI8mm : ArmDotprod {};

template <class Source>
struct Tile<ArmI8mm, Source, 1> : Tile<ArmDotprod, Source, 1> {};

template <class Source, int kRows>
struct Tile<ArmI8mm, Source, kRows> {
  static_assert(Source::kVectors == 4, "16 channels a pass");
  static constexpr int kPairs = (kRows + 1) / 2;  // the last pixel of an odd number is its own partner
  static constexpr int kTwos = 8;                 // of channels
  int32x4_t total[kPairs][kTwos];                 // pixel 0 of channels 0 and 1, pixel 1 of both

  static int Second(int pair) { return 2 * pair + 1 < kRows ? 2 * pair + 1 : 2 * pair; }

  // Four vectors of 4 channels, which lie in order or 16 apart, as each source has them.
  void InitAccumulators(const KRange& range, int pass) {
    KLB_UNROLL for (int v = 0; v < 4; ++v) {
      const int64x2_t init = vreinterpretq_s64_s32(vld1q_s32(range.init + Source::Channel(pass, v)));
      KLB_UNROLL for (int pair = 0; pair < kPairs; ++pair) {
        total[pair][2 * v] = vreinterpretq_s32_s64(vdupq_laneq_s64(init, 0));
        total[pair][2 * v + 1] = vreinterpretq_s32_s64(vdupq_laneq_s64(init, 1));
      }
    }
  }

  // low, high: the same 4 channels of two k-blocks. A channel's 8 weights side by side are half a vector.
  __attribute__((always_inline)) void Add(const int8x16_t* low, const int8x16_t* high, const int8x16_t* x) {
    KLB_UNROLL for (int v = 0; v < 4; ++v) {
      const int32x4_t a = vreinterpretq_s32_s8(low[v]), b = vreinterpretq_s32_s8(high[v]);
      const int8x16_t two[2] = {vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))};
      KLB_UNROLL for (int pair = 0; pair < kPairs; ++pair) {
        total[pair][2 * v] = vmmlaq_s32(total[pair][2 * v], x[pair], two[0]);
        total[pair][2 * v + 1] = vmmlaq_s32(total[pair][2 * v + 1], x[pair], two[1]);
      }
      if (v == 1) asm volatile("" ::: "memory");  // loads the other weights here, or totals leave the registers
    }
  }

  static int8x8_t LoadFour(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return vreinterpret_s8_s32(vset_lane_s32(four, vdup_n_s32(0), 0));
  }

  __attribute__((always_inline)) void AddTap(Source& source, const int8_t* const* rows, int64_t offset,
                                             int64_t k_blocks) {
    int8x16_t low[4], high[4], x[kPairs];
    int64_t at = offset;
    for (int64_t b = 0; b + 2 <= k_blocks; b += 2, at += 2 * kKBlock) {
      source.Load(low);
      source.Load(high);
      KLB_UNROLL for (int pair = 0; pair < kPairs; ++pair)
        x[pair] = vcombine_s8(vld1_s8(rows[2 * pair] + at), vld1_s8(rows[Second(pair)] + at));
      Add(low, high, x);
    }
    if (k_blocks % 2 == 0) return;
    source.Load(low);
    KLB_UNROLL for (int v = 0; v < 4; ++v)
      high[v] = vdupq_n_s8(0);
    KLB_UNROLL for (int pair = 0; pair < kPairs; ++pair)
      x[pair] = vcombine_s8(LoadFour(rows[2 * pair] + at), LoadFour(rows[Second(pair)] + at));
    Add(low, high, x);
  }

  void Store(int pass, int32_t* totals) const {
    KLB_UNROLL for (int pair = 0; pair < kPairs; ++pair) {
      KLB_UNROLL for (int v = 0; v < 4; ++v) {
        const int64x2_t a = vreinterpretq_s64_s32(total[pair][2 * v]);
        const int64x2_t b = vreinterpretq_s64_s32(total[pair][2 * v + 1]);
        int32_t* to = totals + kBlockChannels * 2 * pair + Source::Channel(pass, v);
        vst1q_s32(to, vreinterpretq_s32_s64(vzip1q_s64(a, b)));
        if (2 * pair + 1 < kRows) vst1q_s32(to + kBlockChannels, vreinterpretq_s32_s64(vzip2q_s64(a, b)));
      }
    }
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
      tile.Store(pass, totals);
    }
  }
};

}  // namespace
}  // namespace keras_lowbit
