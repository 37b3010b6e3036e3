#include "kernels/int8_block/int8_block.h"

namespace keras_lowbit {

Int8BlockKernel SelectInt8Block(Row row) {
  static const TableEntry<Int8BlockKernel> kTable[] = {
#define KLB_KERNEL(row, function, offset) {Row::row, {function, offset}},
#include "kernels/int8_block/kernels.inc"
#undef KLB_KERNEL
  };
  return KernelOf(kTable, row);
}

}  // namespace keras_lowbit
