#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace keras_lowbit {
namespace {

#if defined(__x86_64__)

// AVX-VNNI is CPUID leaf 7, sub-leaf 1, EAX bit 4; older compilers have no name for it.
bool HasAvxVnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 4)) != 0;
}

// __builtin_cpu_supports also asks whether the system saves the wide registers.
CpuFeatures Detect() {
  __builtin_cpu_init();
  CpuFeatures features;
  features.avx2 = __builtin_cpu_supports("avx2");
  features.avx_vnni = features.avx2 && HasAvxVnni();
  features.avx512_vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512vnni");
  return features;
}

#elif defined(__aarch64__)

CpuFeatures Detect() {
  CpuFeatures features;
  features.neon = true;
#if defined(__APPLE__)
  features.dotprod = true;  // every 64-bit Mac has it
#elif defined(__linux__)
  features.dotprod = (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
#endif
  return features;
}

#else

CpuFeatures Detect() { return CpuFeatures(); }

#endif

}  // namespace

const CpuFeatures& Cpu() {
  static const CpuFeatures features = Detect();
  return features;
}

}  // namespace keras_lowbit
