// ISA targets: the instruction sets that kernels are compiled for, the same names in every family, best first
// (isa.inc).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/status.h"

namespace keras_lowbit {

enum class Isa {
#define KLB_ISA(name, supported, needs) name,
#include "kernels/isa.inc"
#undef KLB_ISA
};

// The target in use: the forced one, else the environment's KERAS_LOWBIT_KERNEL (read once, at the first use), else
// the first available. An error that lists the choices for an unknown name or one that this CPU cannot run; layers then
// return the same error.
Status ActiveIsa(Isa* isa);
Status ActiveKernel(std::string* name);

// Chooses the target by name; an empty name returns to the environment's choice.
Status ForceKernel(const std::string& name);

// Names of the targets that this CPU runs, best first, without those that emulate a machine: "x86_amx",
// "x86_avx512vnni", "x86_avxvnni", "x86_avx2", "arm_i8mm", "arm_dotprod", "arm_neon", "reference".
std::vector<std::string> AvailableKernels();

// All targets compiled into this library, with the CPU features each needs: for `doctor`.
struct KernelInfo {
  std::string name, needs;
  bool supported;
  bool emulates;  // another machine, for tests: runs only when asked for by name
};
std::vector<KernelInfo> CompiledKernels();

// One entry of a family's table. A family lists its entries in the order of isa.inc and ends with `reference`.
template <class Kernel>
struct TableEntry {
  Isa isa;
  Kernel kernel;
};

// The entry of `isa`; where a family has none, the next simpler one that the same CPU family runs. Targets further
// down the list need a subset of the features of those above, so whatever is found runs.
template <class Kernel, size_t kCount>
const Kernel& KernelOf(const TableEntry<Kernel> (&table)[kCount], Isa isa) {
  size_t i = 0;
  while (i + 1 < kCount && table[i].isa < isa) ++i;
  return table[i].kernel;
}

}  // namespace keras_lowbit
