#include "kernels/depthwise/depthwise.h"

namespace keras_lowbit {

DepthwiseKernel SelectDepthwise(Isa isa) {
  static const TableEntry<DepthwiseKernel> kTable[] = {
#define KLB_KERNEL(isa, function, offset, lanes, products) {Isa::isa, {function, offset, lanes, products}},
#include "kernels/depthwise/kernels.inc"
#undef KLB_KERNEL
  };
  return KernelOf(kTable, isa);
}

}  // namespace keras_lowbit
