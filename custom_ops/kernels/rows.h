// Kernel rows: one for each instruction set, the same names in every family, best first (rows.inc).
#pragma once

#include <cstddef>
#include <string>

#include "core/status.h"

namespace keras_lowbit {

enum class Row {
#define KLB_ROW(name, supported, needs) name,
#include "kernels/rows.inc"
#undef KLB_ROW
};

// The row that runs: forced, from the environment, or the best of this CPU.
Status ActiveRow(Row* row);

// One entry of a family's table. A family lists its entries in the order of rows.inc and ends with `reference`.
template <class Kernel>
struct TableEntry {
  Row row;
  Kernel kernel;
};

// The entry of `row`; where a family has none, the next simpler one that the same CPU family runs. Rows further down
// the list need a subset of the features of those above, so whatever is found runs.
template <class Kernel, size_t kCount>
const Kernel& KernelOf(const TableEntry<Kernel> (&table)[kCount], Row row) {
  size_t i = 0;
  while (i + 1 < kCount && table[i].row < row) ++i;
  return table[i].kernel;
}

}  // namespace keras_lowbit
