#include "layers/indirection.h"

#include <algorithm>

namespace keras_lowbit {
namespace {

// Output columns lo <= x < hi whose tap at `offset` lies inside the image.
struct Inside {
  int64_t lo, hi;
};

Inside InsideColumns(const ConvShape& s, int64_t offset) {
  const auto ceil_divide = [&](int64_t a) { return a <= 0 ? 0 : (a + s.stride_width - 1) / s.stride_width; };
  return {ceil_divide(-offset), ceil_divide(s.in_width - offset)};
}

// `count` output pixels of one output row, from column `x` on; `line` is the image row under the tap, or null.
void FillStretch(const ConvShape& s, const ImageView& image, const int8_t* line, int64_t offset, int64_t x,
                 int64_t count, const int8_t** rows) {
  if (line == nullptr) {
    std::fill_n(rows, count, image.padding);
    return;
  }
  const Inside inside = InsideColumns(s, offset);
  const int64_t lo = std::clamp<int64_t>(inside.lo - x, 0, count), hi = std::clamp<int64_t>(inside.hi - x, lo, count);
  std::fill_n(rows, lo, image.padding);
  const int64_t step = s.stride_width * image.pixel_stride;
  const int8_t* pixel = line + ((x + lo) * s.stride_width + offset) * image.pixel_stride;
  for (int64_t i = lo; i < hi; ++i, pixel += step) rows[i] = pixel;
  std::fill_n(rows + hi, count - hi, image.padding);
}

void FillTap(const ConvShape& s, const ImageView& image, int64_t tap, int64_t first, int64_t count,
             const int8_t** rows) {
  const int64_t width = s.out_width(), height = s.out_height();
  const int64_t row_offset = tap / s.kernel_width * s.dilation_height - s.pad_top;
  const int64_t offset = tap % s.kernel_width * s.dilation_width - s.pad_left;
  int64_t x = first % width, y = first / width % height, n = first / width / height;
  for (int64_t done = 0; done < count;) {
    const int64_t stretch = std::min(width - x, count - done);
    const int64_t in_y = y * s.stride_height + row_offset;
    const bool outside = in_y < 0 || in_y >= s.in_height;
    const int64_t line = (n * s.in_height + in_y) * image.row_pixels * image.pixel_stride;
    FillStretch(s, image, outside ? nullptr : image.pixels + line, offset, x, stretch, rows + done);
    done += stretch;
    x = 0;
    if (++y == height) y = 0, ++n;
  }
}

}  // namespace

void FillRows(const ConvShape& shape, const ImageView& image, int64_t first, int64_t count, const int8_t** rows) {
  for (int64_t tap = 0; tap < shape.taps(); ++tap) FillTap(shape, image, tap, first, count, rows + tap * count);
}

}  // namespace keras_lowbit
