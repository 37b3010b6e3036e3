// What this CPU and its operating system can run: asked once, at first use.
#pragma once

namespace keras_lowbit {

struct CpuFeatures {
  bool avx2 = false;
  bool avx_vnni = false;     // AVX-VNNI, 256 bits, with AVX2
  bool avx512_vnni = false;  // AVX512 F, BW, DQ, VL and VNNI
  bool neon = false;         // every 64-bit Arm
  bool dotprod = false;      // Armv8.2 sdot
};

const CpuFeatures& Cpu();

}  // namespace keras_lowbit
