// ResNet-50 as the CUDA benchmark runs it, on the CPU: its layers, where its tensors lie, and a small one through the
// emulated kernels in that memory against the CPU's kernels with memory of its own for every tensor.
#include <algorithm>
#include <set>

#include "bench/weights_bench.h"
#include "test/check.h"
#include "test/cpu_network.h"
#include "test/emulated_layer.h"

namespace keras_lowbit::test {
namespace {

using bench::Network;
using bench::Step;
using bench::StepKind;

struct EmulatedDevice {
  Status Conv2D(const ConvShape& s, const PackedWeights& weights, const cuda::ConvCall& call) const {
    return cuda::EmulateConv(s, weights, call, cuda::Emulation());
  }
  Status DepthwiseConv2D(const ConvShape& s, const int8_t* kernel, const cuda::ConvCall& call) const {
    return cuda::EmulateDepthwise(s, kernel, call);
  }
  Status MaxPool2D(const ConvShape& s, const int8_t* input, int8_t* output) const {
    return cuda::EmulateMaxPool(s, input, -128, -128, 127, output);
  }
};

std::vector<int64_t> NumbersOf(const ConvShape& s) {
  return {s.in_height, s.in_width, s.in_channels, s.out_channels, s.kernel_height, s.stride_height, s.pad_top};
}

// Counts that anyone can look up: weights of torchvision's resnet50 without biases and batch norms; products of the network
// whose strides are in the first layers of blocks.
void CheckResNet50() {
  const Network network = bench::ResNet50Network(2);
  int64_t convolutions = 0, weights = 0;
  std::set<std::vector<int64_t>> found, listed;
  for (const Step& step : network.steps) {
    if (step.kind != StepKind::kConv) continue;
    const ConvShape& s = step.shape;
    ++convolutions, weights += s.taps() * s.in_channels * s.out_channels;
    if (s.in_height > 1) found.insert(NumbersOf(s));
  }
  for (const bench::Case& c : bench::ResNet50()) listed.insert(NumbersOf(c.shape));
  KLB_CHECK(found == listed, "the network's convolutions are not those of the list");
  KLB_CHECK(convolutions == 54 && weights == 23454912 + 2048000, std::to_string(weights) + " weights");
  KLB_CHECK(network.macs() == 2 * int64_t{3857973248}, std::to_string(network.macs()) + " products");
  KLB_CHECK(network.tensors.back().size() == 2 * 1000, "outputs");
}

// Walks the network with the name of a tensor in each buffer: what a layer reads is still there, its output is elsewhere,
// but in the place of a residual that ends here.
void CheckPlacement(const Network& network) {
  const bench::Placement placed = bench::Place(network);
  const std::vector<int> last = bench::LastReaders(network);
  std::vector<int> holds(placed.bytes.size(), -1);
  holds[placed.buffer_of[0]] = 0;
  int in_place = 0;
  for (size_t i = 0; i < network.steps.size(); ++i) {
    const Step& step = network.steps[i];
    const int to = placed.buffer_of[step.output];
    KLB_CHECK(holds[placed.buffer_of[step.input]] == step.input, "the input of step " + std::to_string(i) + " is gone");
    KLB_CHECK(to != placed.buffer_of[step.input], "step " + std::to_string(i) + " overwrites its input");
    if (step.residual >= 0) {
      KLB_CHECK(holds[placed.buffer_of[step.residual]] == step.residual, "a residual is gone");
      in_place += to == placed.buffer_of[step.residual];
    }
    KLB_CHECK(network.tensors[step.output].size() <= placed.bytes[to], "a buffer is too small");
    const int before = holds[to];
    KLB_CHECK(before < 0 || last[before] < static_cast<int>(i) || (before == step.residual && last[before] == (int)i),
              "step " + std::to_string(i) + " overwrites what is read later");
    holds[to] = step.output;
  }
  KLB_CHECK(in_place == 16, "residuals in place: " + std::to_string(in_place));
  KLB_CHECK(placed.bytes.size() <= 4, std::to_string(placed.bytes.size()) + " buffers");
}

void CheckEmulated(const bench::WeightsKind& kind) {
  const Network network = bench::ResNet50Network(2, 32, 8);
  const bench::NetworkData data(network, kind, 3);
  const bench::Placement placed = bench::Place(network);
  std::vector<std::vector<int8_t>> buffers;
  for (const int64_t bytes : placed.bytes) buffers.emplace_back(bytes, 0x5A);
  std::vector<int8_t*> tensors;
  for (const int buffer : placed.buffer_of) tensors.push_back(buffers[buffer].data());
  std::mt19937 random(4);
  std::vector<int8_t> input(network.tensors[0].size());
  for (int8_t& code : input) code = static_cast<int8_t>(random());
  std::copy(input.begin(), input.end(), tensors[0]);
  KLB_CHECK_OK(bench::RunNetwork(network, data.data(), tensors, EmulatedDevice()));
  const std::vector<int8_t> want = RunOnCpu(network, data, input);
  KLB_CHECK(std::equal(want.begin(), want.end(), tensors.back()), std::string("the networks differ: ") + kind.name);
  const std::set<int8_t> values(want.begin(), want.end());
  KLB_CHECK(values.size() > 30, std::string("outputs of few values: ") + kind.name);
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  using namespace keras_lowbit;
  test::CheckResNet50();
  test::CheckPlacement(bench::ResNet50Network(64));
  test::CheckPlacement(bench::ResNet50Network(1, 32, 8));
  for (const bench::WeightsKind& kind : bench::kWeightsKinds) test::CheckEmulated(kind);
  return 0;
}
