// Plain C functions for keras_lowbit/ops/library.py: what one thread of this machine can do at most.
#include "bench/machine.h"
#include "core/export.h"

// Products of int8 codes in 10**9 a second on one thread, by the fastest instruction of this CPU, whose name goes to
// `instruction`; 0 where none is known.
KLB_EXPORT double KerasLowbitPeakGmacs(const char** instruction) {
  const keras_lowbit::bench::Peak peak = keras_lowbit::bench::BestInt8Peak();
  *instruction = peak.instruction;
  return peak.gmacs;
}
// Float32 fused multiply-adds, the same.
KLB_EXPORT double KerasLowbitPeakFloatGmacs() { return keras_lowbit::bench::PeakFloatGmacs(); }

// GB a second of reading so many bytes on one thread; 0 where there is no memory for them.
KLB_EXPORT double KerasLowbitReadGigabytes(int64_t bytes) {
  try {
    return keras_lowbit::bench::ReadGigabytes(bytes);
  } catch (...) {
    return 0;
  }
}
