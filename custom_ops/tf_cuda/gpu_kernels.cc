// The ops on CUDA devices: a library of its own, loaded beside the one that defines the ops.
#include "core/export.h"
#include "core/per_thread.h"
#include "tf/guard.h"
#include "tf/layer_ops.h"
#include "tf/plain_ops.h"
#include "tf_cuda/gpu_device.h"

namespace keras_lowbit {
namespace {

KLB_REGISTER(PackedConv2D, tensorflow::DEVICE_GPU, GpuDevice);
KLB_REGISTER(PackedDense, tensorflow::DEVICE_GPU, GpuDevice);
KLB_REGISTER(DepthwiseConv2D, tensorflow::DEVICE_GPU, GpuDevice);
KLB_REGISTER(MaxPool2D, tensorflow::DEVICE_GPU, GpuDevice);
KLB_REGISTER(LookUp, tensorflow::DEVICE_GPU, GpuDevice);
KLB_REGISTER(LookUpPair, tensorflow::DEVICE_GPU, GpuDevice);

std::string DescribeDevice() {
  cuda::Device device;
  const Status status = cuda::CurrentDevice(&device);
  if (!status.ok()) return "\t" + status.message();
  return device.name + ", sm_" + std::to_string(device.major) + std::to_string(device.minor) + ", " + device.product + "\t";
}

}  // namespace
}  // namespace keras_lowbit

// The device and the product that its kernels use, tab, nothing; or nothing, tab, why there is none. The text lives until
// the same thread asks again.
KLB_EXPORT const char* KerasLowbitCudaDevice() {
  try {
    static const keras_lowbit::PerThread<std::string> texts;
    std::string& text = texts.Get();
    text = keras_lowbit::DescribeDevice();
    return text.c_str();
  } catch (...) {
    return "\tno memory for the name of the device";
  }
}
