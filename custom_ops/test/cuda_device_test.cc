// The CUDA kernels on a device: random layers against the oracle, every layer of the benchmarks' lists in full against the
// CPU's kernels, packing, maxima and look-ups. Needs CUDA alone. Exit status 77, and a sentence, where no device is.
// `compute-sanitizer --tool memcheck cuda_device_test`, and racecheck, initcheck, synccheck, with KLB_CASES=200, too.
#include <cstdio>
#include <cstring>

#include "bench/cuda_jobs_bench.h"
#include "test/cuda_layer.h"
#include "test/output_factors.h"
#include "test/random_layers.h"
#include "test/cpu_network.h"

namespace keras_lowbit::test {
namespace {

using cuda::DeviceArray;

void CheckOnDevice(const Layer& layer, const Data& data, const std::vector<double>& want) {
  const DeviceData device(data);
  const size_t bytes = want.size() * (layer.type == OutputType::kInt8 ? 1 : 4);
  const DeviceArray<uint8_t> y(std::vector<uint8_t>(bytes, 0x5A));
  cuda::ConvCall call;
  call.epilogue = device.epilogue;
  call.output = y.data();
  KLB_CHECK_OK(RunOnDevice(layer, device, call));
  CheckEqual(layer, y.Get(), want, "CUDA");
  if (!layer.has_residual) return;
  const DeviceArray<uint8_t> in_place(std::vector<uint8_t>(data.residual.begin(), data.residual.end()));
  call.epilogue.residual.codes = reinterpret_cast<const int8_t*>(in_place.data());
  call.output = in_place.data();
  KLB_CHECK_OK(RunOnDevice(layer, device, call));
  CheckEqual(layer, in_place.Get(), want, "CUDA in place");
}

void CheckRandomLayers() {
  const int64_t seed = FromEnvironment("KLB_SEED", 21), cases = FromEnvironment("KLB_CASES", 2000);
  for (int64_t i = 0; i < cases; ++i) {
    Random random(static_cast<uint32_t>(seed + i));
    const Layer layer = DrawLayer(random);
    if (layer.shape.output_size() > 20000) continue;
    const auto data = Draw(layer, random);
    CheckOnDevice(layer, *data, Wanted(layer, *data));
  }
}

void CheckWholeLayer(const Layer& layer) {
  Random random(4);
  const auto data = Draw(layer, random);
  std::vector<uint8_t> y(4 * layer.shape.output_size());
  KLB_CHECK_OK(RunLayer(layer, *data, y.data(), nullptr));
  std::vector<double> want;
  for (int64_t i = 0; i < layer.shape.output_size(); ++i) want.push_back(At(layer.type, y, i));
  CheckOnDevice(layer, *data, want);
}

void CheckList(const std::vector<bench::Case>& cases) {
  for (const bench::Case& c : cases) {
    for (int64_t cluster : {0, 64, 4}) {
      Layer layer;
      layer.shape = c.shape;
      layer.cluster_size = cluster;
      layer.has_scales = cluster > 0;
      layer.zero_point = 5;
      CheckWholeLayer(layer);
    }
    Layer layer;
    layer.shape = c.shape;
    layer.kind = Kind::kInt8;
    CheckWholeLayer(layer);
  }
}

void CheckPacking() {
  for (int i = 0; i < 200; ++i) {
    Random random(static_cast<uint32_t>(i));
    const Layer layer = DrawLayer(random);
    if (layer.kind == Kind::kDepthwise) continue;
    const bool ternary = layer.kind == Kind::kTernary;
    const auto data = Draw(layer, random);
    const auto kernel = Filled(random, static_cast<int64_t>(data->kernel.size()), Fill::kRandom, ternary ? -1 : -128,
                               ternary ? 1 : 127);
    KLB_CHECK_OK(PackWeights(layer.shape, data->weights, kernel.data(), data->codes.data(), data->sums.data()));
    const DeviceData device(*data);
    const DeviceArray<int8_t> on_device(kernel);
    const DeviceArray<uint8_t> codes(data->codes.size());
    const DeviceArray<int32_t> sums(data->sums.size());
    KLB_CHECK_OK(cuda::PackWeights(layer.shape, device.weights, on_device.data(), codes.data(), sums.data(), nullptr));
    KLB_CHECK(codes.Get() == data->codes, "codes of " + Describe(layer));
    KLB_CHECK(sums.Get() == data->sums, "sums of " + Describe(layer));
  }
}

void CheckPool() {
  for (int i = 0; i < 100; ++i) {
    Random random(static_cast<uint32_t>(i));
    ConvShape s = DrawShape(random);
    s.out_channels = s.in_channels;
    s.dilation_height = s.dilation_width = 1;
    const auto x = Filled(random, s.input_size(), kFills[random() % 6], -128, 127);
    std::vector<int8_t> want(s.output_size());
    KLB_CHECK_OK(MaxPool2D(s, x.data(), -9, -100, 90, want.data(), nullptr));
    const DeviceArray<int8_t> on_device(x), y(want.size());
    KLB_CHECK_OK(cuda::MaxPool2D(s, on_device.data(), -9, -100, 90, y.data(), nullptr));
    KLB_CHECK(y.Get() == want, "a maximum of case " + std::to_string(i));
  }
}

void CheckLookUps() {
  Random random(6);
  const auto first = Filled(random, 1001, Fill::kRandom, -128, 127),
             second = Filled(random, 1001, Fill::kRandom, -128, 127);
  const auto table = Filled(random, 65536, Fill::kRandom, -128, 127);
  std::vector<int8_t> one, pair;
  for (size_t i = 0; i < first.size(); ++i) {
    one.push_back(table[first[i] + 128]);
    pair.push_back(table[(first[i] + 128) * 256 + second[i] + 128]);
  }
  const DeviceArray<int8_t> a(first), b(second), codes(table), y(first.size());
  KLB_CHECK_OK(cuda::LookUp(a.data(), 1001, codes.data(), y.data(), nullptr));
  KLB_CHECK(y.Get() == one, "a look-up");
  KLB_CHECK_OK(cuda::LookUpPair(a.data(), b.data(), 1001, codes.data(), y.data(), nullptr));
  KLB_CHECK(y.Get() == pair, "a look-up of pairs");
}

void CheckOutputFactors() {
  Random random(8);
  const FactorCase c = DrawFactors(random);
  const auto channels = static_cast<int64_t>(c.scale.size());
  const DeviceArray<float> scale(c.scale), bias(c.bias);
  const DeviceArray<int32_t> got(3 * channels);
  KLB_CHECK_OK(cuda::OutputFactors(scale.data(), bias.data(), channels, c.input_scale, c.output_scale, got.data(),
                                   nullptr));
  KLB_CHECK(got.Get() == WantedFactors(c), "factors of int8 outputs");
}

// ResNet-50 as a CUDA graph, twice, against the CPU's kernels.
void CheckNetwork() {
  const bench::Network network = bench::ResNet50Network(2);
  for (const bench::WeightsKind& kind : bench::kWeightsKinds) {
    const bench::NetworkData data(network, kind, 3);
    bench::NetworkRunner on_device(network, data);
    for (uint32_t seed : {1, 2}) {
      Random random(seed);
      const auto input = Filled(random, network.tensors[0].size(), Fill::kRandom, -128, 127);
      KLB_CHECK(on_device.Run(input) == RunOnCpu(network, data, input), std::string("ResNet-50, ") + kind.name);
    }
  }
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  using namespace keras_lowbit;
  if (!cuda::HasDevice()) return cuda::kNoDevice;
  cuda::Device device;
  KLB_CHECK_OK(cuda::CurrentDevice(&device));
  std::printf("%s, sm_%d%d, %s\n", device.name.c_str(), device.major, device.minor,
              device.product.c_str());
  test::CheckLookUps();
  test::CheckPacking();
  test::CheckPool();
  test::CheckOutputFactors();
  test::CheckRandomLayers();
  test::CheckNetwork();
  test::CheckList(bench::ResNet50());
  test::CheckList(bench::MobileNetV2());
  test::CheckList(bench::LargeDense());
  KLB_CUDA(cudaDeviceSynchronize());
  std::printf("all layers equal\n");
  return 0;
}
