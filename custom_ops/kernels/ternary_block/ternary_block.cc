#include "kernels/ternary_block/ternary_block.h"

namespace keras_lowbit {

TernaryBlockKernel SelectTernaryBlock(Row row) {
  static const TableEntry<TernaryBlockKernel> kTable[] = {
#define KLB_KERNEL(row, suffix, run_unpacked, offset) \
  {Row::row, {TernaryBlock##suffix, UnpackTernary##suffix, run_unpacked, offset}},
#include "kernels/ternary_block/kernels.inc"
#undef KLB_KERNEL
  };
  return KernelOf(kTable, row);
}

}  // namespace keras_lowbit
