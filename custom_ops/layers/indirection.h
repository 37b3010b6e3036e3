// Pointers to the pixels that each output pixel meets under each tap: convolution without a copy of the image.
#pragma once

#include <cstdint>

#include "core/shapes.h"

namespace keras_lowbit {

// Pointers in the table of one chunk of pixels: half of a first-level cache.
constexpr int64_t kTableEntries = 3072;

// An image whose pixels lie `pixel_stride` bytes apart and whose batch entries follow one another, and a row of zero
// points that stands for padding.
struct ImageView {
  const int8_t* pixels = nullptr;
  int64_t pixel_stride = 0;
  int64_t row_pixels = 0;  // from one row to the next
  const int8_t* padding = nullptr;
};

// rows[tap * count + i] for output pixels first .. first + count - 1, counted over batch, rows and columns.
void FillRows(const ConvShape& shape, const ImageView& image, int64_t first, int64_t count, const int8_t** rows);

}  // namespace keras_lowbit
