// The ops on the CPU.
#include "tf/cpu_device.h"
#include "tf/guard.h"
#include "tf/layer_ops.h"
#include "tf/plain_ops.h"

namespace keras_lowbit {
namespace {

KLB_REGISTER(PackedConv2D, tensorflow::DEVICE_CPU, CpuDevice);
KLB_REGISTER(PackedDense, tensorflow::DEVICE_CPU, CpuDevice);
KLB_REGISTER(DepthwiseConv2D, tensorflow::DEVICE_CPU, CpuDevice);
KLB_REGISTER(MaxPool2D, tensorflow::DEVICE_CPU, CpuDevice);
KLB_REGISTER(LookUp, tensorflow::DEVICE_CPU, CpuDevice);
KLB_REGISTER(LookUpPair, tensorflow::DEVICE_CPU, CpuDevice);

}  // namespace
}  // namespace keras_lowbit
