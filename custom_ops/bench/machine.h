// What this core can do at most: products of vpdpbusd a second, bytes read from memory a second.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace keras_lowbit::bench {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__x86_64__)
// 12 independent sums hide the latency of the instruction on two ports.
__attribute__((target("avx512f,avx512vnni"))) inline double PeakGmacs() {
  __m512i sum[12], x = _mm512_set1_epi8(3), w = _mm512_set1_epi8(5);
  for (int i = 0; i < 12; ++i) sum[i] = _mm512_set1_epi32(i);
  constexpr int kRounds = 1000000;
  double best = 0;
  for (int repeat = 0; repeat < 9; ++repeat) {
    const double start = Seconds();
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < 12; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], x, w);
      asm volatile("" : "+v"(x));  // the loop must not be folded
    }
    best = std::max(best, 12.0 * 64 * kRounds / (Seconds() - start) / 1e9);
  }
  volatile int keep = 0;
  for (int i = 0; i < 12; ++i) keep = keep + _mm512_reduce_add_epi32(sum[i]);
  return best;
}
// The same loop of float32 fused multiply-adds, 16 in an instruction: what a float layer can reach at most.
__attribute__((target("avx512f"))) inline double PeakFloatGmacs() {
  __m512 sum[12], x = _mm512_set1_ps(0.5f), w = _mm512_set1_ps(0.25f);
  for (int i = 0; i < 12; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  constexpr int kRounds = 1000000;
  double best = 0;
  for (int repeat = 0; repeat < 9; ++repeat) {
    const double start = Seconds();
    for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < 12; ++i) sum[i] = _mm512_fmadd_ps(x, w, sum[i]);
      asm volatile("" : "+v"(x));  // the loop must not be folded
    }
    best = std::max(best, 12.0 * 16 * kRounds / (Seconds() - start) / 1e9);
  }
  volatile float keep = 0;
  for (int i = 0; i < 12; ++i) keep = keep + _mm512_reduce_add_ps(sum[i]);
  return best;
}
inline bool HasPeak() { return __builtin_cpu_supports("avx512vnni"); }
#else
inline double PeakGmacs() { return 0; }
inline double PeakFloatGmacs() { return 0; }
inline bool HasPeak() { return false; }
#endif

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
