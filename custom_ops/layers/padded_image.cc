#include "layers/padded_image.h"

#include <algorithm>
#include <cstring>

namespace keras_lowbit {
namespace {

// Three channels are by far the most frequent: colours. One word a pixel, the fourth byte meets weights of zero. All
// but the last pixel are read with the byte behind them.
void CopyColours(const int8_t* input, int64_t pixels, int8_t* copy) {
  constexpr uint8_t kKept[4] = {255, 255, 255, 0};
  uint32_t word, kept;
  std::memcpy(&kept, kKept, 4);
  for (int64_t p = 0; p < pixels - 1; ++p, input += 3, copy += 4) {
    std::memcpy(&word, input, 4);
    word &= kept;
    std::memcpy(copy, &word, 4);
  }
  word = 0;
  std::memcpy(&word, input, 3);
  std::memcpy(copy, &word, 4);
}

// Image rows begin .. end - 1, counted over the batch.
void CopyRows(const PaddedImage& image, const int8_t* input, int64_t begin, int64_t end, int8_t* copy) {
  const ConvShape& s = image.shape;
  const bool colours = s.in_channels == 3 && image.channels == 3 && image.bytes == 4;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t row = line / s.in_height * image.height() + s.pad_top + line % s.in_height;
    const int8_t* from = input + line * s.in_width * s.in_channels;
    int8_t* to = copy + (row * image.width() + s.pad_left) * image.bytes;
    if (colours) CopyColours(from, s.in_width, to);
    for (int64_t x = 0; !colours && x < s.in_width; ++x) {
      CopyPixel(image, from + x * s.in_channels, to + x * image.bytes);
    }
  }
}

}  // namespace

void CopyPixel(const PaddedImage& image, const int8_t* input, int8_t* copy) {
  for (int64_t c = 0; c < image.channels; c += image.cluster_channels, copy += image.cluster_bytes) {
    std::memcpy(copy, input + c, std::min(image.cluster_channels, image.channels - c));
  }
}

void CopyPadded(const PaddedImage& image, const int8_t* input, int32_t zero_point, int8_t* copy,
                const ParallelFor& parallel) {
  const ConvShape& s = image.shape;
  std::memset(copy, zero_point, image.size());
  const int64_t rows = s.batch * s.in_height;
  if (s.in_width == 0) return;
  const Work work = [&](int64_t begin, int64_t end) { CopyRows(image, input, begin, end, copy); };
  RunAll(parallel, rows, s.in_width * (1 + image.channels / 8), work);
}

}  // namespace keras_lowbit
