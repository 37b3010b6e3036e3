// Layers and networks on a CUDA device, ready to be timed.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "bench/cuda_machine.h"
#include "bench/report_bench.h"
#include "bench/weights_bench.h"
#include "cuda/device_array.h"
#include "cuda/launch.h"

namespace keras_lowbit::bench {

using cuda::DeviceArray;

constexpr int64_t kColdBytes = int64_t{256} << 20;  // more than any second-level cache
constexpr int kMostCopies = 64, kCallsOfRound = 8;

inline void ExitOnError(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

// Milliseconds of what `launch` puts on a stream.
class Stopwatch {
 public:
  Stopwatch() {
    KLB_CUDA(cudaEventCreate(&begin_));
    KLB_CUDA(cudaEventCreate(&end_));
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  template <class Launch>
  double Milliseconds(cudaStream_t stream, const Launch& launch) {
    KLB_CUDA(cudaEventRecord(begin_, stream));
    launch();
    KLB_CUDA(cudaEventRecord(end_, stream));
    KLB_CUDA(cudaEventSynchronize(end_));
    float milliseconds = 0;
    KLB_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return milliseconds;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

class Runner {
 public:
  virtual ~Runner() = default;
  virtual double Milliseconds() = 0;  // of one call
  virtual int64_t weight_bytes() const = 0;
};

// A layer with random codes. Weights that would stay in the second-level cache from one call to the next are copies by turns.
class LayerRunner : public Runner {
 public:
  LayerRunner(const ConvShape& s, const WeightsKind& kind)
      : shape_(s),
        x_(std::vector<int8_t>(s.input_size(), 3)),
        y_(s.output_size()),
        multiplier_(std::vector<int32_t>(s.out_channels, 1500000000)),
        shift_(std::vector<int32_t>(s.out_channels, -9)),
        bias_(std::vector<int32_t>(s.out_channels, 11)) {
    SetWeights(kind);
    call_.input = x_.data(), call_.input_zero_point = -3, call_.output = y_.data();
    call_.epilogue.bias = bias_.data();
    call_.epilogue.requantize.multiplier = multiplier_.data(), call_.epilogue.requantize.shift = shift_.data();
    int64_t bytes = 0;
    weights_.codes = copies_[0]->data();
    ExitOnError(cuda::WorkspaceBytes(shape_, weights_, call_, &bytes));
    workspace_ = std::make_unique<DeviceArray<uint8_t>>(bytes);
  }

  double Milliseconds() override {
    const double all = stopwatch_.Milliseconds(nullptr, [&] {
      for (int i = 0; i < kCallsOfRound; ++i) {
        weights_.codes = copies_[next_++ % copies_.size()]->data();
        ExitOnError(cuda::Conv2D(shape_, weights_, call_, workspace_->data(), nullptr));
      }
    });
    return all / kCallsOfRound;
  }

  int64_t weight_bytes() const override { return weights_.codes_bytes + weights_.scales_bytes; }

 private:
  void SetWeights(const WeightsKind& kind) {
    weights_.layout = kind.layout, weights_.cluster_size = kind.cluster_size;
    const WeightSizes sizes = WeightSizesOf(shape_, weights_);
    std::mt19937 random(7);
    std::vector<uint8_t> codes(sizes.codes_bytes_total);
    const bool int8 = kind.layout == WeightLayout::kInt8;
    for (uint8_t& code : codes) code = int8 ? random() : 0x55 & random();  // codes 0 and 1
    weights_.codes_bytes = sizes.codes_bytes_total, weights_.sums_count = sizes.sums_count_total;
    sums_ = std::make_unique<DeviceArray<int32_t>>(std::vector<int32_t>(sizes.sums_count_total, 3));
    weights_.sums = sums_->data();
    if (kind.cluster_size > 0) {
      scales_ = std::make_unique<DeviceArray<int8_t>>(std::vector<int8_t>(sizes.scales_bytes_total, 3));
      weights_.scales = scales_->data(), weights_.scales_bytes = sizes.scales_bytes_total;
    }
    const int64_t copies = shape_.out_pixels() > 64 ? 1 : kColdBytes / sizes.codes_bytes_total + 1;
    for (int64_t i = 0; i < std::min<int64_t>(copies, kMostCopies); ++i) {
      copies_.push_back(std::make_unique<DeviceArray<uint8_t>>(codes));
    }
  }

  ConvShape shape_;
  DeviceArray<int8_t> x_, y_;
  DeviceArray<int32_t> multiplier_, shift_, bias_;
  PackedWeights weights_;
  std::unique_ptr<DeviceArray<int32_t>> sums_;
  std::unique_ptr<DeviceArray<int8_t>> scales_;
  std::vector<std::unique_ptr<DeviceArray<uint8_t>>> copies_;
  std::unique_ptr<DeviceArray<uint8_t>> workspace_;
  cuda::ConvCall call_;
  Stopwatch stopwatch_;
  size_t next_ = 0;
};

// The launchers on one stream.
struct OnStream {
  void* workspace;
  cuda::Stream stream;

  Status Conv2D(const ConvShape& s, const PackedWeights& weights, const cuda::ConvCall& call) const {
    return cuda::Conv2D(s, weights, call, workspace, stream);
  }
  Status DepthwiseConv2D(const ConvShape& s, const int8_t* kernel, const cuda::ConvCall& call) const {
    return cuda::DepthwiseConv2D(s, kernel, call, stream);
  }
  Status MaxPool2D(const ConvShape& s, const int8_t* input, int8_t* output) const {
    return cuda::MaxPool2D(s, input, -128, -128, 127, output, stream);
  }
};

// A network on the device: all its layers as one CUDA graph, tensors in a few buffers.
class NetworkRunner : public Runner {
 public:
  NetworkRunner(const Network& network, const NetworkData& data)
      : network_(network), weight_bytes_(data.weight_bytes()) {
    KLB_CUDA(cudaStreamCreate(&stream_));
    for (size_t i = 0; i < network.steps.size(); ++i) Copy(data.data()[i], *data.arrays()[i]);
    const Placement placed = Place(network);
    for (const int64_t bytes : placed.bytes) {
      buffers_.push_back(std::make_unique<DeviceArray<int8_t>>(std::vector<int8_t>(bytes, 3)));
    }
    for (const int buffer : placed.buffer_of) tensors_.push_back(buffers_[buffer]->data());
    workspace_ = std::make_unique<DeviceArray<uint8_t>>(LargestWorkspace());
    Capture();
  }
  NetworkRunner(const NetworkRunner&) = delete;
  NetworkRunner& operator=(const NetworkRunner&) = delete;
  ~NetworkRunner() override {
    cudaGraphExecDestroy(graph_);
    cudaStreamDestroy(stream_);
  }

  double Milliseconds() override {
    return stopwatch_.Milliseconds(stream_, [&] { KLB_CUDA(cudaGraphLaunch(graph_, stream_)); });
  }
  int64_t weight_bytes() const override { return weight_bytes_; }

  // The output's codes for an input's.
  std::vector<int8_t> Run(const std::vector<int8_t>& input) {
    KLB_CUDA(cudaMemcpy(tensors_[0], input.data(), input.size(), cudaMemcpyHostToDevice));
    Milliseconds();
    std::vector<int8_t> output(network_.tensors.back().size());
    KLB_CUDA(cudaMemcpy(output.data(), tensors_.back(), output.size(), cudaMemcpyDeviceToHost));
    return output;
  }

 private:
  template <class T>
  const T* Keep(const std::vector<T>& values, std::vector<std::unique_ptr<DeviceArray<T>>>* kept) {
    if (values.empty()) return nullptr;
    kept->push_back(std::make_unique<DeviceArray<T>>(values));
    return kept->back()->data();
  }

  void Copy(const StepData& data, const StepArrays& arrays) {
    StepData on_device = data;
    on_device.weights.codes = Keep(arrays.codes, &bytes_);
    on_device.weights.scales = Keep(arrays.scales, &codes_);
    on_device.weights.sums = Keep(arrays.sums, &numbers_);
    on_device.kernel = Keep(arrays.kernel, &codes_);
    on_device.epilogue.bias = Keep(arrays.bias, &numbers_);
    on_device.epilogue.requantize.multiplier = Keep(arrays.multiplier, &numbers_);
    on_device.epilogue.requantize.shift = Keep(arrays.shift, &numbers_);
    data_.push_back(on_device);
  }

  int64_t LargestWorkspace() const {
    int64_t largest = 0;
    for (size_t i = 0; i < network_.steps.size(); ++i) {
      const Step& step = network_.steps[i];
      if (step.kind != StepKind::kConv) continue;
      int64_t bytes = 0;
      const cuda::ConvCall call = CallOf(network_, step, data_[i], tensors_);
      ExitOnError(cuda::WorkspaceBytes(step.shape, data_[i].weights, call, &bytes));
      largest = std::max(largest, bytes);
    }
    return largest;
  }

  void Capture() {
    cudaGraph_t graph;
    KLB_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    ExitOnError(RunNetwork(network_, data_, tensors_, OnStream{workspace_->data(), stream_}));
    KLB_CUDA(cudaStreamEndCapture(stream_, &graph));
    KLB_CUDA(cudaGraphInstantiate(&graph_, graph, 0));
    KLB_CUDA(cudaGraphDestroy(graph));
  }

  const Network network_;
  const int64_t weight_bytes_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
  std::vector<std::unique_ptr<DeviceArray<uint8_t>>> bytes_;
  std::vector<std::unique_ptr<DeviceArray<int8_t>>> codes_, buffers_;
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> numbers_;
  std::vector<StepData> data_;
  std::vector<int8_t*> tensors_;
  std::unique_ptr<DeviceArray<uint8_t>> workspace_;
  Stopwatch stopwatch_;
};

inline std::unique_ptr<Runner> Open(const Job& job, const WeightsKind& kind) {
  if (!job.is_network) return std::make_unique<LayerRunner>(job.shape, kind);
  const Network network = ResNet50Network(job.shape.batch);
  return std::make_unique<NetworkRunner>(network, NetworkData(network, kind, 7));
}

inline int Attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  KLB_CUDA(cudaGetDevice(&device));
  KLB_CUDA(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

inline DeviceFacts MeasureDevice() {
  cuda::Device d;
  ExitOnError(cuda::CurrentDevice(&d));
  const Ceilings ceilings = {CudaPeakGmacs(d.processors, d.has_tensor_cores), CudaReadGigabytes(d.processors)};
  const int clock = Attribute(cudaDevAttrClockRate), memory_clock = Attribute(cudaDevAttrMemoryClockRate);
  return {d.name,   d.product, d.major,      d.minor,        d.processors,
          d.driver, d.runtime, clock,        memory_clock,   CudaClockMhz(d.processors),
          ceilings};
}

}  // namespace keras_lowbit::bench
