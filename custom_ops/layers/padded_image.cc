#include "layers/padded_image.h"

#include <algorithm>
#include <cstring>

namespace keras_lowbit {
namespace {

// Three channels are by far the most frequent: colours. One word a pixel, the fourth byte meets weights of zero.
void CopyColours(const int8_t* input, int64_t pixels, int8_t* copy) {
  for (int64_t p = 0; p < pixels; ++p, input += 3, copy += 4) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(input);
    const uint32_t word = bytes[0] | uint32_t{bytes[1]} << 8 | uint32_t{bytes[2]} << 16;
    std::memcpy(copy, &word, 4);
  }
}

void CopyPixel(const PaddedImage& image, const int8_t* input, int8_t* copy) {
  for (int64_t c = 0; c < image.channels; c += image.cluster_channels, copy += image.cluster_bytes) {
    std::memcpy(copy, input + c, std::min(image.cluster_channels, image.channels - c));
  }
}

}  // namespace

void CopyPadded(const PaddedImage& image, const int8_t* input, int32_t zero_point, int8_t* copy) {
  const ConvShape& s = image.shape;
  std::memset(copy, zero_point, image.size());
  const bool colours = s.in_channels == 3 && image.channels == 3 && image.bytes == 4;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t y = 0; y < s.in_height; ++y) {
      const int64_t row = (n * image.height() + s.pad_top + y) * image.width() + s.pad_left;
      int8_t* to = copy + row * image.bytes;
      if (colours) CopyColours(input, s.in_width, to);
      for (int64_t x = 0; x < s.in_width; ++x, input += s.in_channels) {
        if (!colours) CopyPixel(image, input, to + x * image.bytes);
      }
    }
  }
}

}  // namespace keras_lowbit
