#include "kernels/ternary_block/ternary_block.h"

namespace keras_lowbit {

TernaryBlockKernel SelectTernaryBlock(Isa isa) {
  static const TableEntry<TernaryBlockKernel> kTable[] = {
#define KLB_KERNEL(isa, suffix, run_unpacked, offset, few_pixels) \
  {Isa::isa, {TernaryBlock##suffix, UnpackTernary##suffix, run_unpacked, offset, few_pixels}},
#include "kernels/ternary_block/kernels.inc"
#undef KLB_KERNEL
  };
  return KernelOf(kTable, isa);
}

}  // namespace keras_lowbit
