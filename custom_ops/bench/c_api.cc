// Plain C functions for keras_lowbit/ops/library.py: what one thread of this machine can do at most.
#include "bench/machine.h"
#include "core/export.h"

// Products of vpdpbusd, and float32 fused multiply-adds, in 10**9 a second on one thread; 0 where there is no
// AVX512-VNNI.
KLB_EXPORT double KerasLowbitPeakGmacs() {
  return keras_lowbit::bench::HasPeak() ? keras_lowbit::bench::PeakGmacs() : 0;
}
KLB_EXPORT double KerasLowbitPeakFloatGmacs() {
  return keras_lowbit::bench::HasPeak() ? keras_lowbit::bench::PeakFloatGmacs() : 0;
}

// GB a second of reading so many bytes on one thread; 0 where there is no memory for them.
KLB_EXPORT double KerasLowbitReadGigabytes(int64_t bytes) {
  try {
    return keras_lowbit::bench::ReadGigabytes(bytes);
  } catch (...) {
    return 0;
  }
}
