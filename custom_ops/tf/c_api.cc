// Plain C functions for keras_lowbit/ops/library.py: which ISA targets there are and which one runs. Texts live until
// the same thread calls the same function again. The last three measure this machine, for benchmarks.
#include <string>

#include "core/api.h"
#include "core/machine.h"

#define KLB_EXPORT extern "C" __attribute__((visibility("default")))

// One line for each compiled ISA target, best first: name, tab, CPU features it needs, tab, 1 if this CPU has them.
KLB_EXPORT const char* KerasLowbitCompiledKernels() {
  thread_local std::string text;
  text.clear();
  for (const auto& isa : keras_lowbit::CompiledKernels()) {
    text += isa.name + "\t" + isa.needs + "\t" + (isa.supported ? "1" : "0") + "\n";
  }
  return text.c_str();
}

// The ISA target in use, tab, nothing; or nothing, tab, the error.
KLB_EXPORT const char* KerasLowbitActiveKernel() {
  thread_local std::string text;
  std::string name;
  const keras_lowbit::Status status = keras_lowbit::ActiveKernel(&name);
  text = status.ok() ? name + "\t" : "\t" + status.message();
  return text.c_str();
}

// Empty, or the error.
KLB_EXPORT const char* KerasLowbitForceKernel(const char* name) {
  thread_local std::string text;
  text = keras_lowbit::ForceKernel(name).message();
  return text.c_str();
}

// Products of vpdpbusd, and float32 fused multiply-adds, in 10**9 a second on one thread; 0 where there is no
// AVX512-VNNI.
KLB_EXPORT double KerasLowbitPeakGmacs() {
  return keras_lowbit::bench::HasPeak() ? keras_lowbit::bench::PeakGmacs() : 0;
}
KLB_EXPORT double KerasLowbitPeakFloatGmacs() {
  return keras_lowbit::bench::HasPeak() ? keras_lowbit::bench::PeakFloatGmacs() : 0;
}

// GB a second of reading so many bytes on one thread.
KLB_EXPORT double KerasLowbitReadGigabytes(int64_t bytes) { return keras_lowbit::bench::ReadGigabytes(bytes); }
