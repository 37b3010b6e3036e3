#include "kernels/int8_block/int8_block.h"

namespace keras_lowbit {

Int8BlockKernel SelectInt8Block(Isa isa) {
  static const TableEntry<Int8BlockKernel> kTable[] = {
#define KLB_KERNEL(isa, function, offset) {Isa::isa, {function, offset}},
#include "kernels/int8_block/kernels.inc"
#undef KLB_KERNEL
  };
  return KernelOf(kTable, isa);
}

}  // namespace keras_lowbit
