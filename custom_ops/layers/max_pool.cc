// Largest codes of windows: a line of column maxima for each output row, then maxima of its neighbours.
//
// Codes are compared as unsigned bytes with their top bit flipped, which even the lowest CPU does 16 at a time; these
// loops are left to the compiler.
#include <algorithm>
#include <cstring>
#include <string>

#include "core/per_thread.h"
#include "layers/layers.h"
#include "layers/max_pool.h"
#include "layers/scratch.h"

namespace keras_lowbit {
namespace {

uint8_t Flipped(int32_t code) { return static_cast<uint8_t>(static_cast<int8_t>(code)) ^ 0x80; }

struct Pool {
  ConvShape shape;
  const int8_t* input;
  int8_t* output;
  uint8_t padding, low, high;
};

// to[i] = max(to[i], from[i])
void TakeLarger(const int8_t* from, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::max<uint8_t>(to[i], static_cast<uint8_t>(from[i]) ^ 0x80);
}

// Column maxima of the image rows under output row `y` of image `n`, borders included: [in_width + pads][channels].
void FillLine(const Pool& pool, int64_t n, int64_t y, uint8_t* line) {
  const ConvShape& s = pool.shape;
  const int64_t row_bytes = s.in_width * s.in_channels, first = y * s.stride_height - s.pad_top;
  const int64_t begin = std::max<int64_t>(first, 0), end = std::min(first + s.kernel_height, s.in_height);
  const bool padded = end - begin < s.kernel_height;
  std::memset(line, pool.padding, (s.in_width + s.pad_left + s.pad_right) * s.in_channels);
  uint8_t* inside = line + s.pad_left * s.in_channels;
  if (!padded) std::memset(inside, 0, row_bytes);
  for (int64_t row = begin; row < end; ++row) {
    TakeLarger(pool.input + (n * s.in_height + row) * row_bytes, row_bytes, inside);
  }
}

void FinishPixel(const Pool& pool, const uint8_t* line, uint8_t* most, int8_t* output) {
  const int64_t channels = pool.shape.in_channels;
  std::memcpy(most, line, channels);
  for (int64_t j = 1; j < pool.shape.kernel_width; ++j) {
    const uint8_t* next = line + j * channels;
    for (int64_t c = 0; c < channels; ++c) most[c] = std::max(most[c], next[c]);
  }
  const uint8_t low = pool.low, high = pool.high;
  for (int64_t c = 0; c < channels; ++c) {
    output[c] = static_cast<int8_t>(std::min(std::max(most[c], low), high) ^ 0x80);
  }
}

void RunRows(const Pool& pool, int64_t begin, int64_t end) {
  static const PerThread<Scratch> scratches;
  const ConvShape& s = pool.shape;
  const int64_t channels = s.in_channels, width = s.out_width(), height = s.out_height();
  auto* line = scratches.Get().Get<uint8_t>((s.in_width + s.pad_left + s.pad_right + 1) * channels);
  uint8_t* most = line + (s.in_width + s.pad_left + s.pad_right) * channels;
  for (int64_t row = begin; row < end; ++row) {
    FillLine(pool, row / height, row % height, line);
    for (int64_t x = 0; x < width; ++x) {
      FinishPixel(pool, line + x * s.stride_width * channels, most, pool.output + (row * width + x) * channels);
    }
  }
}

}  // namespace

Status CheckPool(const ConvShape& shape, int32_t padding_code, int32_t clamp_min, int32_t clamp_max) {
  KLB_RETURN_IF_ERROR(CheckConv(shape));
  if (shape.in_channels != shape.out_channels || shape.groups != 1 || shape.dilation_height != 1 ||
      shape.dilation_width != 1) {
    return Status::Error("a pool has groups or dilations, or other output than input channels; expected neither");
  }
  for (const int32_t code : {padding_code, clamp_min, clamp_max}) {
    if (code < -128 || code > 127) {
      return Status::Error("a pool's padding or clamp is " + std::to_string(code) + "; expected an int8 code");
    }
  }
  if (clamp_min <= clamp_max) return Status();
  return Status::Error("a pool's clamp runs from " + std::to_string(clamp_min) + " down to " +
                       std::to_string(clamp_max) + "; expected the lower code first");
}

Status MaxPool2D(const ConvShape& shape, const int8_t* input, int32_t padding_code, int32_t clamp_min,
                 int32_t clamp_max, int8_t* output, const ParallelFor& parallel) {
  KLB_RETURN_IF_ERROR(CheckPool(shape, padding_code, clamp_min, clamp_max));
  const Pool pool = {shape, input, output, Flipped(padding_code), Flipped(clamp_min), Flipped(clamp_max)};
  const int64_t rows = shape.batch * shape.out_height();
  if (rows * shape.out_width() == 0) return Status();
  const Work work = [&pool](int64_t begin, int64_t end) { RunRows(pool, begin, end); };
  const int64_t steps = shape.kernel_height * shape.in_width + shape.kernel_width * shape.out_width();
  RunAll(parallel, rows, steps * shape.in_channels / 16 + 1, work);
  return Status();
}

}  // namespace keras_lowbit
