// ISA targets: the instruction sets that kernels are compiled for, the same names in every family, best first (isa.inc).
#pragma once

#include <cstddef>
#include <string>

#include "core/status.h"

namespace keras_lowbit {

enum class Isa {
#define KLB_ISA(name, supported, needs) name,
#include "kernels/isa.inc"
#undef KLB_ISA
};

// The target that runs: forced, from the environment, or the best of this CPU.
Status ActiveIsa(Isa* isa);

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
