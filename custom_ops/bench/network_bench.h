// A whole network as a list of layers over numbered tensors, where its tensors lie in memory, and how it is run: plain C++,
// for a device, for the emulation and for the CPU's kernels alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/layer_list.h"
#include "core/packing.h"
#include "cuda/plan.h"

namespace keras_lowbit::bench {

// kAverage: of the whole image, as a depthwise layer of ones.
enum class StepKind { kConv, kAverage, kMaxPool };

// A layer: the tensors that it reads and makes. With a residual, the relu comes behind the addition.
struct Step {
  StepKind kind;
  ConvShape shape;
  int input, output, residual = -1;
  bool relu = false;
};

// int8 NHWC; codes behind a relu begin at the lowest.
struct NetworkTensor {
  int64_t batch, height, width, channels;
  int32_t zero_point;
  int64_t size() const { return batch * height * width * channels; }
};

struct Network {
  std::vector<Step> steps;
  std::vector<NetworkTensor> tensors;  // 0 is the network's input, the last its output

  int64_t macs() const {
    int64_t total = 0;
    for (const Step& step : steps) {
      const ConvShape& s = step.shape;
      if (step.kind == StepKind::kConv) total += s.out_pixels() * s.taps() * s.in_channels * s.out_channels;
    }
    return total;
  }
};

class NetworkBuilder {
 public:
  explicit NetworkBuilder(NetworkTensor input) { network_.tensors.push_back(input); }

  int Conv(int input, int64_t out_channels, int64_t kernel, int64_t stride, bool relu, int residual = -1) {
    return Add(StepKind::kConv, input, out_channels, kernel, stride, relu, residual);
  }
  int MaxPool(int input, int64_t kernel, int64_t stride) {
    return Add(StepKind::kMaxPool, input, Of(input).channels, kernel, stride, Of(input).zero_point == -128, -1);
  }
  int Average(int input) {
    const int output = Add(StepKind::kAverage, input, Of(input).channels, Of(input).height, 1, true, -1);
    ConvShape& s = network_.steps.back().shape;
    s.pad_top = s.pad_bottom = s.pad_left = s.pad_right = 0;
    network_.tensors[output].height = network_.tensors[output].width = 1;
    return output;
  }
  const Network& network() const { return network_; }

 private:
  const NetworkTensor& Of(int tensor) const { return network_.tensors[tensor]; }

  int Add(StepKind kind, int input, int64_t out_channels, int64_t kernel, int64_t stride, bool relu, int residual) {
    const NetworkTensor& x = Of(input);
    ConvShape s;
    s.batch = x.batch, s.in_height = x.height, s.in_width = x.width, s.in_channels = x.channels;
    s.out_channels = out_channels, s.kernel_height = s.kernel_width = kernel;
    s.stride_height = s.stride_width = stride;
    SetSamePadding(&s);
    network_.tensors.push_back({s.batch, s.out_height(), s.out_width(), out_channels, relu ? -128 : 3});
    const int output = static_cast<int>(network_.tensors.size()) - 1;
    network_.steps.push_back({kind, s, input, output, residual, relu});
    return output;
  }

  Network network_;
};

// Keras' ResNet50, its batch norms folded. narrower: divides the channels of every layer but the last, for tests.
inline Network ResNet50Network(int64_t batch, int64_t size = 224, int64_t narrower = 1) {
  NetworkBuilder b({batch, size, size, 3, 3});
  int x = b.MaxPool(b.Conv(0, 64 / narrower, 7, 2, true), 3, 2);
  const int blocks[] = {3, 4, 6, 3};
  for (int stage = 0; stage < 4; ++stage) {
    const int64_t width = (int64_t{64} << stage) / narrower;
    for (int block = 0; block < blocks[stage]; ++block) {
      const int64_t stride = stage > 0 && block == 0 ? 2 : 1;
      const int shortcut = block == 0 ? b.Conv(x, 4 * width, 1, stride, false) : x;
      const int y = b.Conv(b.Conv(x, width, 1, stride, true), width, 3, 1, true);
      x = b.Conv(y, 4 * width, 1, 1, true, shortcut);
    }
  }
  b.Conv(b.Average(x), 1000, 1, 1, false);
  return b.network();
}

// Which buffer each tensor lies in, and the size of each. A buffer is free behind the last layer that reads its tensor; a
// layer with a residual that nobody reads any more writes into it.
struct Placement {
  std::vector<int> buffer_of;
  std::vector<int64_t> bytes;
};

// The last step that reads each tensor; the network's output is read for ever.
inline std::vector<int> LastReaders(const Network& network) {
  std::vector<int> last(network.tensors.size(), -1);
  for (size_t i = 0; i < network.steps.size(); ++i) {
    const Step& step = network.steps[i];
    last[step.input] = static_cast<int>(i);
    if (step.residual >= 0) last[step.residual] = static_cast<int>(i);
  }
  last.back() = static_cast<int>(network.steps.size());
  return last;
}

// The free buffer that grows least to hold `size`; a new one where none is free.
inline int TakeBuffer(int64_t size, std::vector<int>* free, std::vector<int64_t>* bytes) {
  if (free->empty()) {
    bytes->push_back(size);
    return static_cast<int>(bytes->size()) - 1;
  }
  const auto cost = [&](int buffer) {
    const int64_t missing = size - (*bytes)[buffer];
    return missing > 0 ? missing : -missing / 1024;
  };
  const auto best =
      std::min_element(free->begin(), free->end(), [&](int one, int other) { return cost(one) < cost(other); });
  const int taken = *best;
  free->erase(best);
  (*bytes)[taken] = std::max((*bytes)[taken], size);
  return taken;
}

inline Placement Place(const Network& network) {
  Placement placed;
  placed.buffer_of.assign(network.tensors.size(), -1);
  placed.buffer_of[0] = 0;
  placed.bytes.push_back(network.tensors[0].size());
  const std::vector<int> last = LastReaders(network);
  std::vector<int> free;
  for (size_t i = 0; i < network.steps.size(); ++i) {
    const Step& step = network.steps[i];
    const auto ends = [&](int tensor) { return tensor >= 0 && last[tensor] == static_cast<int>(i); };
    placed.buffer_of[step.output] = ends(step.residual)
                                        ? placed.buffer_of[step.residual]
                                        : TakeBuffer(network.tensors[step.output].size(), &free, &placed.bytes);
    if (ends(step.input)) free.push_back(placed.buffer_of[step.input]);
  }
  return placed;
}

// What a layer has beside its tensors, in the memory of who runs it.
struct StepData {
  PackedWeights weights;
  const int8_t* kernel = nullptr;  // kAverage
  Epilogue epilogue;               // without the residual's codes
};

inline cuda::ConvCall CallOf(const Network& network, const Step& step, const StepData& data,
                             const std::vector<int8_t*>& tensors) {
  cuda::ConvCall call;
  call.input = tensors[step.input], call.output = tensors[step.output];
  call.input_zero_point = network.tensors[step.input].zero_point;
  call.epilogue = data.epilogue;
  if (step.residual >= 0) call.epilogue.residual.codes = tensors[step.residual];
  return call;
}

// Runs all layers in order. tensors: where each lies.   device: has Conv2D, DepthwiseConv2D and MaxPool2D.
template <class Device>
Status RunNetwork(const Network& network, const std::vector<StepData>& data, const std::vector<int8_t*>& tensors,
                  const Device& device) {
  for (size_t i = 0; i < network.steps.size(); ++i) {
    const Step& step = network.steps[i];
    const cuda::ConvCall call = CallOf(network, step, data[i], tensors);
    if (step.kind == StepKind::kConv) {
      KLB_RETURN_IF_ERROR(device.Conv2D(step.shape, data[i].weights, call));
    } else if (step.kind == StepKind::kAverage) {
      KLB_RETURN_IF_ERROR(device.DepthwiseConv2D(step.shape, data[i].kernel, call));
    } else {
      KLB_RETURN_IF_ERROR(device.MaxPool2D(step.shape, call.input, static_cast<int8_t*>(call.output)));
    }
  }
  return Status();
}

}  // namespace keras_lowbit::bench
