// What this CPU and its operating system can run: asked once, at first use.
#pragma once

namespace keras_lowbit {

struct CpuFeatures {
  bool avx2 = false;         // AVX2 and fused multiply-adds, which came with it
  bool avx_vnni = false;     // AVX-VNNI, 256 bits, with AVX2
  bool avx512_vnni = false;  // AVX512 F, BW, DQ, VL and VNNI
  bool amx_int8 = false;     // AMX tiles of int8, and this process may use them
  bool neon = false;         // every 64-bit Arm
  bool dotprod = false;      // Armv8.2 sdot
  bool i8mm = false;         // Armv8.6 smmla
};

const CpuFeatures& Cpu();

}  // namespace keras_lowbit
