// The first three numbers of kernels/tile_block/kernels.inc, measured on this machine: `tiles_bench [target] [rounds]`, by
// default x86_amx. One thread. Every layer runs on tiles and without in turns; its best rounds are compared.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "kernels/isa.h"
#include "kernels/tile_block/tile_block.h"
#include "layers/layer_cache.h"
#include "layers/layers.h"

namespace keras_lowbit::bench {
namespace {

constexpr int64_t kNever = int64_t{1} << 40;
constexpr TileLimits kAlways = {1, int64_t{1} << 20, 6, 64}, kWithout = {kNever, 1, 6, 64};

// A ternary 1x1 layer on so many pixels.
class Layer {
 public:
  Layer(int64_t pixels, int64_t in, int64_t out) {
    shape_ = AsConv({pixels, in, out});
    std::mt19937 random(7);
    std::vector<int8_t> kernel(in * out);
    for (int8_t& w : kernel) w = static_cast<int8_t>(random() % 3) - 1;
    x_.resize(shape_.input_size()), y_.resize(shape_.output_size());
    for (int8_t& v : x_) v = static_cast<int8_t>(random());
    const WeightSizes sizes = WeightSizesOf(shape_, weights_);
    codes_.resize(sizes.codes_bytes_total), sums_.resize(sizes.sums_count_total);
    PackWeights(shape_, weights_, kernel.data(), codes_.data(), sums_.data());
    weights_.codes = codes_.data(), weights_.codes_bytes = codes_.size();
    weights_.sums = sums_.data(), weights_.sums_count = sums_.size();
    multiplier_.assign(out, 1500000000), shift_.assign(out, -5);
    epilogue_.requantize.multiplier = multiplier_.data(), epilogue_.requantize.shift = shift_.data();
  }

  // Seconds of a call under each of these limits, the best of all rounds.
  std::vector<double> Seconds(const std::vector<TileLimits>& limits, int rounds) {
    std::vector<double> best(limits.size(), 1e9);
    std::vector<LayerCache> caches(limits.size());
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < limits.size(); ++i) best[i] = std::min(best[i], Turn(limits[i], &caches[i], round));
    }
    return best;
  }

 private:
  // The mean of calls that multiply 10**7 times together. The first two rounds find what is kept between calls.
  double Turn(const TileLimits& limits, LayerCache* cache, int round) {
    const int64_t products = shape_.out_pixels() * shape_.in_channels * shape_.out_channels;
    const int calls = round < 2 ? 1 : static_cast<int>(std::max<int64_t>(10000000 / products, 1));
    SetTileLimits(&limits);
    const double start = bench::Seconds();
    for (int i = 0; i < calls; ++i) {
      const Status status = Conv2D(shape_, weights_, x_.data(), -3, epilogue_, y_.data(), nullptr, cache);
      if (!status.ok()) std::printf("%s\n", status.message().c_str());
    }
    const double seconds = (bench::Seconds() - start) / calls;
    SetTileLimits(nullptr);
    return round < 2 ? 1e9 : seconds;
  }

  ConvShape shape_;
  PackedWeights weights_;
  std::vector<int8_t> x_, y_;
  std::vector<uint8_t> codes_;
  std::vector<int32_t> sums_, multiplier_, shift_;
  Epilogue epilogue_;
};

// A layer's number, on which a limit decides, and its times on tiles and without.
struct Sample {
  double number, with, without;
};

// The limit with the least product of all times: layers whose number `takes` are on tiles.
template <class Takes>
double BestLimit(const std::vector<Sample>& samples, const std::vector<double>& limits, const Takes& takes) {
  double best = limits.front(), least = 1e300;
  for (double limit : limits) {
    double sum = 0;
    for (const Sample& s : samples) sum += std::log(takes(s.number, limit) ? s.with : s.without);
    if (sum < least) least = sum, best = limit;
  }
  return best;
}

Sample Compare(double number, int64_t pixels, int64_t in, int64_t out, int rounds) {
  const std::vector<double> seconds = Layer(pixels, in, out).Seconds({kAlways, kWithout}, rounds);
  std::printf("  %6.2f: %ld x %ld -> %ld  tiles %.2f us, without %.2f\n", number, static_cast<long>(pixels),
              static_cast<long>(in), static_cast<long>(out), 1e6 * seconds[0], 1e6 * seconds[1]);
  return {number, seconds[0], seconds[1]};
}

double FewestPixels(int rounds) {
  std::printf("fewest pixels\n");
  std::vector<Sample> samples;
  std::vector<double> limits = {1, 2, 4, 6, 8, 12, 16, 24, 32, 49};
  for (double pixels : limits) {
    const auto count = static_cast<int64_t>(pixels);
    for (int64_t in : {128, 512, 2048}) samples.push_back(Compare(pixels, count, in, 256, rounds));
  }
  limits.push_back(64);
  return BestLimit(samples, limits, [](double pixels, double limit) { return pixels >= limit; });
}

// Depths below 64 and channels below 16 make tiles multiply more than the layer has.
double MostProducts(int rounds) {
  std::printf("most products, as times the layer's own\n");
  std::vector<Sample> samples;
  for (int64_t in : {3, 8, 16, 24, 32, 48, 96}) {
    for (int64_t out : {8, 24, 96}) {
      const double times = (in + 63) / 64 * 64.0 * ((out + 15) / 16 * 16) / (in * out);
      samples.push_back(Compare(times, 784, in, out, rounds));
    }
  }
  const std::vector<double> limits = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
  return BestLimit(samples, limits, [](double times, double limit) { return times <= limit; });
}

double MostSteps(int rounds) {
  std::printf("most steps of a slice\n");
  const std::vector<double> steps = {2, 4, 6, 8, 12, 16, 32, 64};
  std::vector<TileLimits> limits;
  for (double most : steps) limits.push_back({1, int64_t{1} << 20, static_cast<int64_t>(most), 64});
  std::vector<double> sums(steps.size());
  for (int64_t pixels : {16, 64}) {
    for (int64_t in : {1024, 4608, 25088}) {
      const std::vector<double> seconds = Layer(pixels, in, 512).Seconds(limits, rounds);
      std::printf("  %ld x %ld -> 512:", static_cast<long>(pixels), static_cast<long>(in));
      for (size_t i = 0; i < steps.size(); ++i) {
        std::printf("  %.0f %.0f us", steps[i], 1e6 * seconds[i]);
        sums[i] += std::log(seconds[i]);
      }
      std::printf("\n");
    }
  }
  return steps[std::min_element(sums.begin(), sums.end()) - sums.begin()];
}

}  // namespace
}  // namespace keras_lowbit::bench

int main(int argc, char** argv) {
  using namespace keras_lowbit::bench;
  const std::string target = argc > 1 ? argv[1] : "x86_amx";
  const int rounds = 2 + (argc > 2 ? std::atoi(argv[2]) : 30);
  const keras_lowbit::Status status = keras_lowbit::ForceKernel(target);
  if (!status.ok()) {
    std::printf("%s\n", status.message().c_str());
    return 1;
  }
  const double pixels = FewestPixels(rounds), products = MostProducts(rounds), steps = MostSteps(rounds);
  std::printf("best for the line of %s in kernels/tile_block/kernels.inc: %.0f, %.0f, %.0f\n", target.c_str(), pixels,
              products, steps);
  return 0;
}
