// MaxPool2D against the definition, window by window, and inputs that must be refused.
#include <algorithm>
#include <thread>

#include "test/cases.h"

namespace keras_lowbit::test {
namespace {

struct PoolCase {
  ConvShape shape;
  int32_t padding_code = -128, low = -128, high = 127;
};

// Pixel by pixel, in wide integers; shares no code with the library.
std::vector<int8_t> Expected(const PoolCase& c, const std::vector<int8_t>& x) {
  const ConvShape& s = c.shape;
  const int64_t padded_height = s.in_height + s.pad_top + s.pad_bottom,
                padded_width = s.in_width + s.pad_left + s.pad_right;
  std::vector<int8_t> y;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t top = 0; top + s.kernel_height <= padded_height; top += s.stride_height) {
      for (int64_t left = 0; left + s.kernel_width <= padded_width; left += s.stride_width) {
        for (int64_t channel = 0; channel < s.in_channels; ++channel) {
          int64_t most = -1000;
          for (int64_t i = top; i < top + s.kernel_height; ++i) {
            for (int64_t j = left; j < left + s.kernel_width; ++j) {
              const int64_t row = i - s.pad_top, column = j - s.pad_left;
              const bool inside = row >= 0 && row < s.in_height && column >= 0 && column < s.in_width;
              const int64_t pixel = (n * s.in_height + row) * s.in_width + column;
              most = std::max<int64_t>(most, inside ? x[pixel * s.in_channels + channel] : c.padding_code);
            }
          }
          y.push_back(static_cast<int8_t>(oracle::Clip(most, c.low, c.high)));
        }
      }
    }
  }
  return y;
}

PoolCase DrawPool(Random& random) {
  PoolCase c;
  ConvShape& s = c.shape;
  s.batch = Between(random, 1, 2), s.in_height = Between(random, 1, 12), s.in_width = Between(random, 1, 12);
  s.in_channels = s.out_channels = random() % 2 ? Between(random, 1, 9) : Between(random, 10, 70);
  s.kernel_height = Between(random, 1, 5), s.kernel_width = Between(random, 1, 5);
  s.stride_height = Between(random, 1, 6), s.stride_width = Between(random, 1, 6);
  s.pad_top = Between(random, 0, 4), s.pad_bottom = Between(random, 0, 4);
  s.pad_left = Between(random, 0, 4), s.pad_right = Between(random, 0, 4);
  if (random() % 2) c.padding_code = static_cast<int32_t>(Between(random, -128, 127));
  if (random() % 2)
    c.low = static_cast<int32_t>(Between(random, -128, 0)), c.high = static_cast<int32_t>(Between(random, 0, 127));
  return c;
}

// Two threads, one from the middle on.
void OnThreads(int64_t count, int64_t, const Work& work) {
  std::thread other([&] { work(count / 2, count); });
  work(0, count / 2);
  other.join();
}

void CheckRandomPools() {
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    Random random(seed);
    const PoolCase c = DrawPool(random);
    const std::vector<int8_t> x = Filled(random, c.shape.input_size(), kFills[seed % 6], -128, 127);
    const std::vector<int8_t> want = Expected(c, x);
    KLB_CHECK(static_cast<int64_t>(want.size()) == c.shape.output_size(), "seed " + std::to_string(seed));
    for (const ParallelFor& parallel : {ParallelFor(), ParallelFor(OnThreads)}) {
      std::vector<int8_t> y(want.size(), 0x5A);
      KLB_CHECK_OK(MaxPool2D(c.shape, x.data(), c.padding_code, c.low, c.high, y.data(), parallel));
      KLB_CHECK(y == want, "seed " + std::to_string(seed));
    }
  }
}

void CheckErrors() {
  const int8_t x[8] = {};
  int8_t y[8];
  const struct {
    const char* words;
    void (*change)(PoolCase*);
  } cases[] = {
      {"stride_width is 0; expected 1 to", [](PoolCase* c) { c->shape.stride_width = 0; }},
      {"a pool has groups or dilations", [](PoolCase* c) { c->shape.dilation_width = 2; }},
      {"a pool has groups or dilations", [](PoolCase* c) { c->shape.out_channels = 4; }},
      {"a pool's padding or clamp is 128", [](PoolCase* c) { c->padding_code = 128; }},
      {"runs from 5 down to 4", [](PoolCase* c) { c->low = 5, c->high = 4; }},
  };
  for (const auto& wrong : cases) {
    PoolCase c;
    c.shape.in_channels = c.shape.out_channels = 8;
    wrong.change(&c);
    KLB_CHECK_ERROR(MaxPool2D(c.shape, x, c.padding_code, c.low, c.high, y, nullptr), wrong.words);
  }
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  keras_lowbit::test::CheckErrors();
  keras_lowbit::test::CheckRandomPools();
  return 0;
}
