#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace keras_lowbit {
namespace {

#if defined(__x86_64__)

// AVX-VNNI is CPUID leaf 7, sub-leaf 1, EAX bit 4; older compilers have no name for it.
bool HasAvxVnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 4)) != 0;
}

// Leaf 7: EDX bit 24 are the tiles, bit 25 their int8 products.
bool HasAmxInt8() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBoth = (1u << 24) | (1u << 25);
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kBoth) == kBoth;
}

// Whether the system saves the tiles and lets this process use them. It must be asked once for the whole process; a
// kernel before 5.16 and some sandboxes say no. What it granted is asked for too: an emulator may say yes to anything.
bool MayUseTiles() {
#if defined(__linux__)
  constexpr int kGetPermission = 0x1022, kRequestPermission = 0x1023, kTileData = 18;
  unsigned long granted = 0;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 &&
         syscall(SYS_arch_prctl, kGetPermission, &granted) == 0 && (granted & (1ul << kTileData)) != 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports also asks whether the system saves the wide registers.
CpuFeatures Detect() {
  __builtin_cpu_init();
  CpuFeatures features;
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  features.avx_vnni = features.avx2 && HasAvxVnni();
  features.avx512_vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512vnni");
  features.amx_int8 = HasAmxInt8() && MayUseTiles();
  return features;
}

#elif defined(__aarch64__)

CpuFeatures Detect() {
  CpuFeatures features;
  features.neon = true;
#if defined(__APPLE__)
  features.dotprod = true;  // every 64-bit Mac has it
  int value = 0;
  size_t bytes = sizeof value;
  features.i8mm = sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &bytes, nullptr, 0) == 0 && value != 0;
#elif defined(__linux__)
  features.dotprod = (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
  features.i8mm = (getauxval(AT_HWCAP2) & (1ul << 13)) != 0;    // HWCAP2_I8MM
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
