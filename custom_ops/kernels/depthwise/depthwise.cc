#include "kernels/depthwise/depthwise.h"

namespace keras_lowbit {

DepthwiseKernel SelectDepthwise(Row row) {
  static const TableEntry<DepthwiseKernel> kTable[] = {
#define KLB_KERNEL(row, function, offset, lanes) {Row::row, {function, offset, lanes}},
#include "kernels/depthwise/kernels.inc"
#undef KLB_KERNEL
  };
  return KernelOf(kTable, row);
}

}  // namespace keras_lowbit
