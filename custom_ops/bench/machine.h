// What this core can do at most: products a second of its best instructions, bytes read from memory a second.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/simd/x86_amx.h"
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace keras_lowbit::bench {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// 10**9 products a second of a loop, the best of 9 turns. Timed from outside, since sums that live on both sides of a call
// stand in memory.
inline double BestGmacs(int products_of_round, void (*loop)(int rounds)) {
  constexpr int kRounds = 300000;
  double best = 0;
  for (int repeat = 0; repeat < 9; ++repeat) {
    const double start = Seconds();
    loop(kRounds);
    best = std::max(best, static_cast<double>(products_of_round) * kRounds / (Seconds() - start) / 1e9);
  }
  return best;
}

// A loop in which 12 independent sums hide the latency of an instruction: `step` adds products of x to sum[i]. `keep`, a
// register constraint, holds the compiler from folding it.
#define KLB_PEAK(function, isa, products, Vector, value, keep, step)                       \
  __attribute__((target(isa), noinline)) inline void function##Loop(int rounds) {          \
    Vector x = value, sum[12];                                                             \
    _Pragma("GCC unroll 12") for (int i = 0; i < 12; ++i) sum[i] = value;                  \
    for (int round = 0; round < rounds; ++round) {                                         \
      _Pragma("GCC unroll 12") for (int i = 0; i < 12; ++i) step;                          \
      asm volatile("" : keep(x));                                                          \
    }                                                                                      \
    _Pragma("GCC unroll 12") for (int i = 0; i < 12; ++i) asm volatile("" : keep(sum[i])); \
  }                                                                                        \
  inline double function() { return BestGmacs(12 * (products), function##Loop); }

#if defined(__x86_64__)
// Four products of tiles, each with totals of its own.
__attribute__((noinline)) inline void TileLoop(int rounds) {
  alignas(kAlignment) static const int8_t bytes[kMaxTileRows * kMaxTileRowBytes] = {1, 2, 3};
  AmxTiles tiles(WholeTiles());
  tiles.Load<0>(bytes, 64), tiles.Load<1>(bytes, 64), tiles.Load<2>(bytes, 64), tiles.Load<3>(bytes, 64);
  tiles.Load<4>(bytes, 64), tiles.Load<5>(bytes, 64), tiles.Load<6>(bytes, 64), tiles.Load<7>(bytes, 64);
  for (int round = 0; round < rounds; ++round) {
    tiles.Dot<0, 4, 6>(), tiles.Dot<1, 4, 7>(), tiles.Dot<2, 5, 6>(), tiles.Dot<3, 5, 7>();
  }
}
inline double TileGmacs() { return BestGmacs(4 * 16 * 16 * 64, TileLoop); }
// vpdpbusd as text: compilers move the sums of the intrinsic about, and older ones have no name for that of AVX-VNNI.
KLB_PEAK(Avx512VnniGmacs, "avx512f,avx512vnni", 64, __m512i, _mm512_set1_epi8(3), "+v",
         asm("vpdpbusd %1, %1, %0" : "+v"(sum[i]) : "v"(x)))
KLB_PEAK(AvxVnniGmacs, "avx2", 32, __m256i, _mm256_set1_epi8(3), "+x",
         asm("%{vex%} vpdpbusd %1, %1, %0" : "+x"(sum[i]) : "x"(x)))
KLB_PEAK(Avx2Gmacs, "avx2", 32, __m256i, _mm256_set1_epi8(3), "+x",
         sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(x, sum[i])))
KLB_PEAK(Avx512FloatGmacs, "avx512f", 16, __m512, _mm512_set1_ps(0.5f), "+v", sum[i] = _mm512_fmadd_ps(x, x, sum[i]))
KLB_PEAK(Avx2FloatGmacs, "avx2,fma", 8, __m256, _mm256_set1_ps(0.5f), "+x", sum[i] = _mm256_fmadd_ps(x, x, sum[i]))
#elif defined(__aarch64__)
KLB_PEAK(I8mmGmacs, "arch=armv8.2-a+dotprod+i8mm", 32, int32x4_t, vdupq_n_s32(3), "+w",
         asm("smmla %0.4s, %1.16b, %1.16b" : "+w"(sum[i]) : "w"(x)))
KLB_PEAK(DotprodGmacs, "arch=armv8.2-a+dotprod", 16, int32x4_t, vdupq_n_s32(3), "+w",
         asm("sdot %0.4s, %1.16b, %1.16b" : "+w"(sum[i]) : "w"(x)))
KLB_PEAK(NeonGmacs, "arch=armv8-a", 8, int32x4_t, vdupq_n_s32(3), "+w",
         sum[i] = vpadalq_s16(sum[i], vmull_s8(vreinterpret_s8_s32(vget_low_s32(x)),
                                               vreinterpret_s8_s32(vget_low_s32(sum[i])))))
KLB_PEAK(NeonFloatGmacs, "arch=armv8-a", 4, float32x4_t, vdupq_n_f32(0.5f), "+w", sum[i] = vfmaq_f32(sum[i], x, x))
#endif
#undef KLB_PEAK

// What one thread of this CPU reaches with its best instruction.
struct Peak {
  const char* instruction = "";
  double gmacs = 0;
};

// The fastest of the instructions that multiply int8 codes, as measured; none: 0.
inline Peak BestInt8Peak() {
  Peak best;
  [[maybe_unused]] const auto offer = [&](bool supported, const char* instruction, double (*measure)()) {
    const double gmacs = supported ? measure() : 0;
    if (gmacs > best.gmacs) best = {instruction, gmacs};
  };
  [[maybe_unused]] const CpuFeatures& cpu = Cpu();
#if defined(__x86_64__)
  offer(cpu.amx_int8, "AMX tdpbssd", TileGmacs);
  offer(cpu.avx512_vnni, "AVX512-VNNI vpdpbusd", Avx512VnniGmacs);
  offer(cpu.avx_vnni, "AVX-VNNI vpdpbusd", AvxVnniGmacs);
  offer(cpu.avx2, "AVX2 vpmaddubsw", Avx2Gmacs);
#elif defined(__aarch64__)
  offer(cpu.i8mm, "smmla", I8mmGmacs);
  offer(cpu.dotprod, "sdot", DotprodGmacs);
  offer(cpu.neon, "smull and sadalp", NeonGmacs);
#endif
  return best;
}

inline double PeakFloatGmacs() {
  [[maybe_unused]] const CpuFeatures& cpu = Cpu();
#if defined(__x86_64__)
  return cpu.avx512_vnni ? Avx512FloatGmacs() : cpu.avx2 ? Avx2FloatGmacs() : 0;
#elif defined(__aarch64__)
  return NeonFloatGmacs();
#else
  return 0;
#endif
}

// Sums `bytes` of memory, one 64-bit word at a time in 8 streams of a line.
inline double ReadGigabytes(int64_t bytes) {
  std::vector<uint64_t> words(bytes / 8, 1);
  double best = 0;
  volatile uint64_t keep = 0;
  for (int repeat = 0; repeat < 7; ++repeat) {
    const double start = Seconds();
    uint64_t sum[8] = {};
    for (size_t i = 0; i + 8 <= words.size(); i += 8) {
      for (int j = 0; j < 8; ++j) sum[j] += words[i + j];
    }
    for (uint64_t part : sum) keep = keep + part;
    best = std::max(best, bytes / (Seconds() - start) / 1e9);
  }
  return best;
}

}  // namespace keras_lowbit::bench
