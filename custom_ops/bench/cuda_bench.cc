// Layers on a CUDA device, and what the device can do at most, as JSON: `cuda_bench [batch] [rounds]`. Needs CUDA alone.
// Exit status 77, and a sentence, where no device is.
//
// All variants of a layer take turns within each round; the best and the median round are given. Weights that would stay
// in the second-level cache from one call to the next are copies by turns.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "bench/cuda_machine.h"
#include "bench/layer_list.h"
#include "cuda/launch.h"
#include "cuda/device_array.h"

namespace keras_lowbit::bench {
namespace {

using cuda::DeviceArray;

constexpr int64_t kColdBytes = int64_t{256} << 20;  // more than any second-level cache
constexpr int kMostCopies = 64, kCallsOfRound = 8;

void ExitOnError(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

// One kind of weights of one layer, with random codes, ready to run.
class Variant {
 public:
  Variant(const char* name, const ConvShape& shape, WeightLayout layout, int64_t cluster_size)
      : name_(name), shape_(shape) {
    weights_.layout = layout;
    weights_.cluster_size = cluster_size;
    const WeightSizes sizes = WeightSizesOf(shape, weights_);
    std::mt19937 random(7);
    std::vector<uint8_t> codes(sizes.codes_bytes_total);
    for (uint8_t& code : codes) code = layout == WeightLayout::kInt8 ? random() : 0x55 & random();  // codes 0 and 1
    weights_.codes_bytes = sizes.codes_bytes_total;
    weights_.sums_count = sizes.sums_count_total;
    sums_ = std::make_unique<DeviceArray<int32_t>>(std::vector<int32_t>(sizes.sums_count_total, 3));
    weights_.sums = sums_->data();
    if (cluster_size > 0) {
      scales_ = std::make_unique<DeviceArray<int8_t>>(std::vector<int8_t>(sizes.scales_bytes_total, 3));
      weights_.scales = scales_->data();
      weights_.scales_bytes = sizes.scales_bytes_total;
    }
    const int64_t copies = shape.out_pixels() > 64 ? 1 : kColdBytes / sizes.codes_bytes_total + 1;
    for (int64_t i = 0; i < std::min<int64_t>(copies, kMostCopies); ++i) {
      copies_.push_back(std::make_unique<DeviceArray<uint8_t>>(codes));
    }
  }

  // Milliseconds of a call.
  double Run(cuda::ConvCall call) {
    weights_.codes = copies_[0]->data();
    int64_t bytes = 0;
    ExitOnError(cuda::WorkspaceBytes(shape_, weights_, call, &bytes));
    const DeviceArray<uint8_t> workspace(bytes);
    KLB_CUDA(cudaEventRecord(begin_));
    for (int i = 0; i < kCallsOfRound; ++i) {
      weights_.codes = copies_[next_++ % copies_.size()]->data();
      ExitOnError(cuda::Conv2D(shape_, weights_, call, workspace.data(), nullptr));
    }
    KLB_CUDA(cudaEventRecord(end_));
    KLB_CUDA(cudaEventSynchronize(end_));
    float milliseconds = 0;
    KLB_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return milliseconds / kCallsOfRound;
  }

  std::vector<double> times;
  const char* name() const { return name_; }
  int64_t bytes() const { return weights_.codes_bytes + weights_.scales_bytes; }

 private:
  struct Event {
    Event() { KLB_CUDA(cudaEventCreate(&event)); }
    operator cudaEvent_t() const { return event; }
    cudaEvent_t event = nullptr;
  };
  const char* name_;
  ConvShape shape_;
  PackedWeights weights_;
  std::unique_ptr<DeviceArray<int32_t>> sums_;
  std::unique_ptr<DeviceArray<int8_t>> scales_;
  std::vector<std::unique_ptr<DeviceArray<uint8_t>>> copies_;
  size_t next_ = 0;
  Event begin_, end_;
};

struct Ceilings {
  double gmacs, gigabytes;
};

// What a layer reads and writes around its weights.
struct Tensors {
  explicit Tensors(const ConvShape& s)
      : x(std::vector<int8_t>(s.input_size(), 3)),
        y(s.output_size()),
        multiplier(std::vector<int32_t>(s.out_channels, 1500000000)),
        shift(std::vector<int32_t>(s.out_channels, -9)),
        bias(std::vector<int32_t>(s.out_channels, 11)) {}

  cuda::ConvCall Call() const {
    cuda::ConvCall call;
    call.input = x.data(), call.input_zero_point = -3, call.output = y.data();
    call.epilogue.bias = bias.data();
    call.epilogue.requantize.multiplier = multiplier.data(), call.epilogue.requantize.shift = shift.data();
    return call;
  }

  DeviceArray<int8_t> x, y;
  DeviceArray<int32_t> multiplier, shift, bias;
};

void Print(const Case& c, const Variant& variant, const Ceilings& ceilings, bool first) {
  std::vector<double> times = variant.times;
  std::sort(times.begin(), times.end());
  const ConvShape& s = c.shape;
  const double macs = static_cast<double>(s.out_pixels()) * s.taps() * s.in_channels * s.out_channels;
  const double gmacs = macs / times[0] / 1e6, gigabytes = variant.bytes() / times[0] / 1e6;
  std::printf(
      "%s\n    {\"layer\": \"%s\", \"batch\": %lld, \"weights\": \"%s\", \"ms\": %.5f, \"median_ms\": %.5f, "
      "\"gmacs\": %.1f, \"of_int8_peak\": %.4f, \"weight_gb_s\": %.2f, \"of_read_peak\": %.4f}",
      first ? "" : ",", c.name.c_str(), static_cast<long long>(s.batch), variant.name(), times[0],
      times[times.size() / 2], gmacs, gmacs / ceilings.gmacs, gigabytes, gigabytes / ceilings.gigabytes);
}

void Measure(const Case& c, int rounds, const Ceilings& ceilings, bool first) {
  const Tensors tensors(c.shape);
  std::vector<std::unique_ptr<Variant>> variants;
  variants.push_back(std::make_unique<Variant>("ternary", c.shape, WeightLayout::kTernary2Bit, 0));
  variants.push_back(std::make_unique<Variant>("clusters of 64", c.shape, WeightLayout::kTernary2Bit, 64));
  variants.push_back(std::make_unique<Variant>("clusters of 4", c.shape, WeightLayout::kTernary2Bit, 4));
  variants.push_back(std::make_unique<Variant>("int8", c.shape, WeightLayout::kInt8, 0));
  for (int round = 0; round <= rounds; ++round) {
    for (auto& variant : variants) {
      const double time = variant->Run(tensors.Call());
      if (round > 0) variant->times.push_back(time);
    }
  }
  for (size_t i = 0; i < variants.size(); ++i) Print(c, *variants[i], ceilings, first && i == 0);
}

int Attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  KLB_CUDA(cudaGetDevice(&device));
  KLB_CUDA(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

std::vector<Case> AllCases(int64_t batch) {
  std::vector<Case> cases = ResNet50();
  for (const Case& c : MobileNetV2()) cases.push_back(c);
  for (Case& c : cases) c.shape.batch = batch;
  for (const Case& c : LargeDense()) {
    cases.push_back(c);
    cases.push_back(c);
    cases.back().shape.in_width = 256;  // rows
  }
  return cases;
}

}  // namespace
}  // namespace keras_lowbit::bench

int main(int argc, char** argv) {
  using namespace keras_lowbit;
  using namespace keras_lowbit::bench;
  if (!cuda::HasDevice()) return cuda::kNoDevice;
  const int64_t batch = argc > 1 ? std::atoll(argv[1]) : 64;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  cuda::Device device;
  ExitOnError(cuda::CurrentDevice(&device));
  const Ceilings ceilings = {CudaPeakGmacs(device.processors), CudaReadGigabytes(device.processors)};
  std::printf(
      "{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"processors\": %d, \"driver\": %d, "
      "\"runtime\": %d,\n \"highest_clock_khz\": %d, \"highest_memory_clock_khz\": %d, \"product\": \"%s\",\n "
      "\"int8_peak_gmacs\": %.0f, \"read_gb_s\": %.0f, \"rounds\": %d,\n \"results\": [",
      device.name.c_str(), device.major, device.minor, device.processors, device.driver, device.runtime,
      Attribute(cudaDevAttrClockRate), Attribute(cudaDevAttrMemoryClockRate),
      device.has_tensor_cores ? "mma.sync.m16n8k32" : "dp4a", ceilings.gmacs, ceilings.gigabytes, rounds);
  bool first = true;
  for (const Case& c : AllCases(batch)) {
    Measure(c, rounds, ceilings, first);
    first = false;
  }
  std::printf("\n  ]}\n");
  return 0;
}
