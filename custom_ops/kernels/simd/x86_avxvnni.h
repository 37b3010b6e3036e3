// SIMD traits of AVX-VNNI: 8 channels of int32, 32 bytes of weights.
#pragma once

#include "kernels/simd/x86_avx2_common.h"

namespace keras_lowbit {
namespace {

struct AvxVnni : Avx2Common {
  using Totals = __m256i;
  using Weights = __m256i;
  using Activations = __m256i;

  static Totals Init(const int32_t* init) { return LoadVector(init); }
  static Totals Zero() { return _mm256_setzero_si256(); }
  static Totals Add(Totals a, Totals b) { return _mm256_add_epi32(a, b); }
  static void Store(int32_t* to, Totals total) { StoreVector(to, total); }
  static Weights Load(const int8_t* from) { return LoadVector(from); }
  static void Decode(const uint8_t* from, Weights* w) { DecodeBytes(from, w); }

  // See x86_avx512.h: x + 128 as an unsigned byte.
  static Activations Broadcast(const int8_t* from) {
    return _mm256_xor_si256(BroadcastFour(from), _mm256_set1_epi8(-128));
  }
  static Activations FromBytes(Bytes x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
  static Totals Dot(Totals total, Activations x, Weights w) { return _mm256_dpbusd_avx_epi32(total, x, w); }
};

}  // namespace
}  // namespace keras_lowbit
