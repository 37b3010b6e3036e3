// GMAC/s of each layer, one thread: `kernels_bench [filter] [rounds]`, KERAS_LOWBIT_KERNEL chooses the ISA target.
//
// All variants of a layer take turns within each round, so that a slow moment of the machine hits all of them. The
// best and the median round are printed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/layer_list.h"
#include "bench/machine.h"
#include "kernels/isa.h"
#include "layers/layer_cache.h"
#include "layers/layers.h"

namespace keras_lowbit::bench {
namespace {

// One kernel of one layer with random weights, ready to run.
class Variant {
 public:
  Variant(const char* name, const ConvShape& shape, bool ternary, int64_t cluster_size,
          const std::vector<int8_t>& kernel)
      : name_(name), shape_(shape) {
    weights_.layout = ternary ? WeightLayout::kTernary2Bit : WeightLayout::kInt8;
    weights_.cluster_size = cluster_size;
    const WeightSizes sizes = WeightSizesOf(shape, weights_);
    codes_.resize(sizes.codes_bytes_total + kAlignment);
    auto* codes = codes_.data() + (kAlignment - reinterpret_cast<uintptr_t>(codes_.data()) % kAlignment) % kAlignment;
    sums_.resize(sizes.sums_count_total);
    if (cluster_size > 0) {
      scales_.assign(sizes.scales_bytes_total, 3);
      weights_.scales = scales_.data();
      weights_.scales_bytes = sizes.scales_bytes_total;
    }
    PackWeights(shape, weights_, kernel.data(), codes, sums_.data());
    weights_.codes = codes;
    weights_.codes_bytes = sizes.codes_bytes_total;
    weights_.sums = sums_.data();
    weights_.sums_count = sizes.sums_count_total;
  }

  double Run(const std::vector<int8_t>& x, const Epilogue& epilogue, std::vector<int8_t>* y) {
    const double start = Seconds();
    const Status status = Conv2D(shape_, weights_, x.data(), -3, epilogue, y->data(), nullptr, cache_.get());
    if (!status.ok()) std::printf("%s\n", status.message().c_str());
    return Seconds() - start;
  }

  std::vector<double> times;
  const char* name() const { return name_; }
  int64_t bytes() const { return weights_.codes_bytes + weights_.scales_bytes; }

 private:
  const char* name_;
  ConvShape shape_;
  PackedWeights weights_;
  std::vector<uint8_t> codes_;
  std::vector<int8_t> scales_;
  std::vector<int32_t> sums_;
  std::unique_ptr<LayerCache> cache_ = std::make_unique<LayerCache>();
};

struct Averages {
  double log_sum = 0;
  int count = 0;
};

void Measure(const Case& c, int rounds, std::vector<Averages>* averages) {
  const ConvShape& s = c.shape;
  const double macs = static_cast<double>(s.out_pixels()) * s.taps() * s.in_channels * s.out_channels;
  std::mt19937 random(7);
  std::vector<int8_t> kernel(s.taps() * s.in_channels * s.out_channels), x(s.input_size()), y(s.output_size());
  for (int8_t& w : kernel) w = static_cast<int8_t>(random() % 3) - 1;
  for (int8_t& v : x) v = static_cast<int8_t>(random());
  std::vector<int32_t> multiplier(s.out_channels, 1500000000), shift(s.out_channels, -5), bias(s.out_channels, 11);
  Epilogue epilogue;
  epilogue.bias = bias.data();
  epilogue.requantize.multiplier = multiplier.data();
  epilogue.requantize.shift = shift.data();
  std::vector<Variant> variants;
  variants.emplace_back("ternary", s, true, 0, kernel);
  variants.emplace_back("clusters of 64", s, true, 64, kernel);
  variants.emplace_back("clusters of 4", s, true, 4, kernel);
  variants.emplace_back("int8", s, false, 0, kernel);
  for (int round = 0; round < rounds; ++round) {
    for (Variant& variant : variants) {
      const int repeats = std::max(1, static_cast<int>(2e8 / macs));
      double time = 0;
      for (int i = 0; i < repeats; ++i) time += variant.Run(x, epilogue, &y);
      variant.times.push_back(time / repeats);
    }
  }
  std::printf("%-26s", c.name.c_str());
  for (size_t i = 0; i < variants.size(); ++i) {
    std::vector<double>& times = variants[i].times;
    std::sort(times.begin(), times.end());
    const double best = macs / times[0] / 1e9, median = macs / times[times.size() / 2] / 1e9;
    std::printf("  %s %.0f (%.0f) %.0f GB/s", variants[i].name(), best, median, variants[i].bytes() / times[0] / 1e9);
    averages->resize(variants.size());
    (*averages)[i].log_sum += std::log(best);
    (*averages)[i].count++;
  }
  std::printf("\n");
}

void MeasureAll(const char* title, const std::vector<Case>& cases, const std::string& filter, int rounds) {
  std::vector<Averages> averages;
  for (const Case& c : cases) {
    if (c.name.find(filter) != std::string::npos) Measure(c, rounds, &averages);
  }
  if (averages.empty()) return;
  std::printf("%s, geometric means in GMAC/s:", title);
  for (const Averages& average : averages) std::printf(" %.0f", std::exp(average.log_sum / average.count));
  std::printf("\n");
}

}  // namespace
}  // namespace keras_lowbit::bench

int main(int argc, char** argv) {
  using namespace keras_lowbit::bench;
  const std::string filter = argc > 1 ? argv[1] : "";
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  std::string isa;
  const keras_lowbit::Status status = keras_lowbit::ActiveKernel(&isa);
  std::printf("kernel %s; GMAC/s: best (median) of %d rounds\n", (status.ok() ? isa : status.message()).c_str(),
              rounds);
  const Peak peak = BestInt8Peak();
  std::printf("%s reaches %.0f GMAC/s\n", peak.instruction, peak.gmacs);
  std::printf("reads %.0f GB/s from 256 MB, %.0f GB/s from 4 MB\n", ReadGigabytes(256 << 20), ReadGigabytes(4 << 20));
  MeasureAll("ResNet-50", ResNet50(), filter, rounds);
  MeasureAll("MobileNetV2", MobileNetV2(), filter, rounds);
  MeasureAll("dense, batch 1", LargeDense(), filter, rounds);
  return 0;
}
