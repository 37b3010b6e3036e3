// A benchmark's network on the CPU's kernels, every tensor in memory of its own.
#pragma once

#include <vector>

#include "bench/weights_bench.h"
#include "layers/layers.h"
#include "test/check.h"

namespace keras_lowbit::test {

struct CpuDevice {
  Status Conv2D(const ConvShape& s, const PackedWeights& weights, const cuda::ConvCall& call) const {
    return keras_lowbit::Conv2D(s, weights, call.input, call.input_zero_point, call.epilogue, call.output, nullptr);
  }
  Status DepthwiseConv2D(const ConvShape& s, const int8_t* kernel, const cuda::ConvCall& call) const {
    return keras_lowbit::DepthwiseConv2D(s, kernel, call.input, call.input_zero_point, call.epilogue, call.output,
                                         nullptr);
  }
  Status MaxPool2D(const ConvShape& s, const int8_t* input, int8_t* output) const {
    return keras_lowbit::MaxPool2D(s, input, -128, -128, 127, output, nullptr);
  }
};

inline std::vector<int8_t> RunOnCpu(const bench::Network& network, const bench::NetworkData& data,
                                    const std::vector<int8_t>& input) {
  std::vector<std::vector<int8_t>> memory;
  std::vector<int8_t*> tensors;
  for (const bench::NetworkTensor& tensor : network.tensors) memory.emplace_back(tensor.size(), 0x5A);
  memory[0] = input;
  for (auto& tensor : memory) tensors.push_back(tensor.data());
  KLB_CHECK_OK(bench::RunNetwork(network, data.data(), tensors, CpuDevice()));
  return memory.back();
}

}  // namespace keras_lowbit::test
