// Memory of a CUDA device for tests and benchmarks: an error ends the program and says where.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#define KLB_CUDA(expression)                                                                                \
  do {                                                                                                      \
    const cudaError_t error_ = (expression);                                                                \
    if (error_ != cudaSuccess) {                                                                            \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expression, cudaGetErrorString(error_)); \
      std::exit(1);                                                                                         \
    }                                                                                                       \
  } while (false)

namespace keras_lowbit::cuda {

// What a program returns that found no device; CTest counts it as skipped.
constexpr int kNoDevice = 77;

// Says why where there is no device.
inline bool HasDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return true;
  std::printf("skipped: no device (%s)\n", error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
  return false;
}

// An array on the device.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) { KLB_CUDA(cudaMalloc(&data_, size * sizeof(T) + 1)); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  void Set(const std::vector<T>& values) {
    KLB_CUDA(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    KLB_CUDA(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  T* data() const { return static_cast<T*>(data_); }
  // Null for an empty array, as the library means it.
  T* data_or_null() const { return size_ == 0 ? nullptr : data(); }

 private:
  size_t size_;
  void* data_ = nullptr;
};

}  // namespace keras_lowbit::cuda
