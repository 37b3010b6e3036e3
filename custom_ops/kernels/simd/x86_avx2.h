// SIMD traits of plain AVX2: exact products of int8 by int8.
#pragma once

#include "kernels/simd/x86_avx2_common.h"

namespace keras_lowbit {
namespace {

// vpmaddubsw saturates at 16 bits, which 255 * 127 * 2 exceeds. So even and odd bytes are widened to 16 bits and
// multiplied apart: both pairs of products land in their channel's int32.
struct Avx2 : Avx2Common {
  struct Pair {
    __m256i even, odd;
  };
  using Totals = __m256i;
  using Weights = Pair;
  using Activations = Pair;

  static Pair Widen(__m256i bytes) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
  }

  static Totals Init(const int32_t* init) { return LoadVector(init); }
  static Totals Zero() { return _mm256_setzero_si256(); }
  static Totals Add(Totals a, Totals b) { return _mm256_add_epi32(a, b); }
  static void Store(int32_t* to, Totals total) { StoreVector(to, total); }
  static Weights Load(const int8_t* from) { return Widen(LoadVector(from)); }
  static Activations Broadcast(const int8_t* from) { return Widen(BroadcastFour(from)); }
  static Activations FromBytes(Bytes x) { return Widen(x); }
  static Totals Dot(Totals total, const Activations& x, const Weights& w) {
    total = _mm256_add_epi32(total, _mm256_madd_epi16(x.even, w.even));
    return _mm256_add_epi32(total, _mm256_madd_epi16(x.odd, w.odd));
  }
};

}  // namespace
}  // namespace keras_lowbit
