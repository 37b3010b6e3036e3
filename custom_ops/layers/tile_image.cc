#include "layers/tile_image.h"

#include <algorithm>
#include <cstring>

namespace keras_lowbit {
namespace {

// The totals of so few tiles wait in the first-level cache, beside a slice of a panel.
constexpr int64_t kFewTiles = 4;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t FloorDivide(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// Pixels of an image of `size` at one place of the stride.
int64_t PlaceSize(int64_t size, int64_t place, int64_t stride) {
  return place < size ? CeilDivide(size - place, stride) : 0;
}

TileAxis MakeAxis(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t dilation, int64_t pad) {
  TileAxis axis;
  axis.places.reserve(std::min(taps, stride)), axis.tap_place.reserve(taps), axis.tap_shift.reserve(taps);
  axis.most = outputs;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t at = tap * dilation - pad, shift = FloorDivide(at, stride), place = at - shift * stride;
    const auto found = std::find(axis.places.begin(), axis.places.end(), place);
    axis.tap_place.push_back(found - axis.places.begin());
    if (found == axis.places.end()) axis.places.push_back(place);
    axis.tap_shift.push_back(shift);
    axis.lead = std::max(axis.lead, -shift);
    axis.most = std::max(axis.most, outputs + shift);
  }
  axis.pitch = axis.most;
  for (int64_t place : axis.places)
    axis.pitch = std::max(axis.pitch, std::min(PlaceSize(size, place, stride), axis.most) + axis.lead);
  return axis;
}

std::vector<int64_t> TapOffsets(const TileImagePlan& plan) {
  std::vector<int64_t> offsets;
  offsets.reserve(plan.rows.tap_place.size() * plan.columns.tap_place.size());
  const int64_t across = static_cast<int64_t>(plan.columns.places.size());
  for (size_t y = 0; y < plan.rows.tap_place.size(); ++y) {
    for (size_t x = 0; x < plan.columns.tap_place.size(); ++x) {
      const int64_t plane = plan.rows.tap_place[y] * across + plan.columns.tap_place[x];
      const int64_t row = plan.rows.lead + plan.rows.tap_shift[y];
      const int64_t column = plan.columns.lead + plan.columns.tap_shift[x];
      offsets.push_back((plane * plan.plane_pixels + row * plan.columns.pitch + column) * plan.image.bytes);
    }
  }
  return offsets;
}

// A row of a plane, or only padding: `row` counts from the first pixel's.
void CopyRow(const TileImagePlan& plan, const int8_t* input, int64_t entry, int64_t row, int64_t y_place,
             int64_t x_place, int32_t zero_point, int8_t* to) {
  const ConvShape& s = plan.image.shape;
  const int64_t bytes = plan.image.bytes, y = row * s.stride_height + y_place;
  const bool inside = row < plan.rows.most && y < s.in_height;
  const int64_t pixels = inside ? std::min(PlaceSize(s.in_width, x_place, s.stride_width), plan.columns.most) : 0;
  const int8_t* from = input + ((entry * s.in_height + y) * s.in_width + x_place) * s.in_channels;
  const int64_t step = s.stride_width * s.in_channels;
  if (step == bytes && plan.image.channels == bytes) {
    std::memcpy(to, from, pixels * bytes);
  } else {
    for (int64_t x = 0; x < pixels; ++x) CopyPixel(plan.image, from + x * step, to + x * bytes);
  }
  std::memset(to + pixels * bytes, zero_point, (plan.columns.pitch - pixels) * bytes);
}

}  // namespace

TileSizes PlanTileAxes(const ConvShape& s, TileImagePlan* plan) {
  plan->rows = MakeAxis(s.in_height, s.out_height(), s.kernel_height, s.stride_height, s.dilation_height, s.pad_top);
  plan->columns = MakeAxis(s.in_width, s.out_width(), s.kernel_width, s.stride_width, s.dilation_width, s.pad_left);
  plan->planes = static_cast<int64_t>(plan->rows.places.size() * plan->columns.places.size());
  const double positions = 1.0 * s.batch * plan->rows.pitch * plan->columns.pitch;
  return {plan->planes * (positions + 1.0 * plan->rows.lead * plan->columns.pitch), positions};
}

void PlanTileImage(const ConvShape& s, const PackedWeights& weights, const WeightSizes& sizes, const TileLimits& limits,
                   TileImagePlan* plan) {
  const int64_t channels = s.in_channels / s.groups, steps = CeilDivide(sizes.tap_k_blocks, kTileKBlocks);
  const int64_t cluster = weights.cluster_size > 0 ? std::min(weights.cluster_size, channels) : channels;
  plan->image = {s, channels, cluster, sizes.cluster_k_blocks * kKBlock, steps * kTileDepth};
  plan->plane_pixels = (plan->rows.lead + s.batch * plan->rows.pitch) * plan->columns.pitch + plan->columns.lead;
  plan->plane_pixels += kTilePositions;  // a tile that is read where there are fewer positions
  plan->tap_offsets = TapOffsets(*plan);
  TileImage& view = plan->view;
  view.pixel_bytes = plan->image.bytes;
  view.taps = s.taps(), view.steps = steps;
  view.row_positions = plan->columns.pitch, view.width = s.out_width();
  view.entry_rows = plan->rows.pitch, view.height = s.out_height();
  const int64_t rows = (s.batch - 1) * view.entry_rows + view.height;
  view.positions = (rows - 1) * view.row_positions + view.width;
  view.tiles = CeilDivide(view.positions, kTilePositions);
  const int64_t most = view.tiles <= kFewTiles ? limits.most_steps : limits.most_steps_of_many;
  view.slice_steps = CeilDivide(view.taps * steps, CeilDivide(view.taps * steps, most));
  plan->in_place = s.taps() * s.stride_height * s.stride_width * s.groups == 1 && s.in_channels == view.pixel_bytes &&
                   s.in_channels == sizes.tap_k_blocks * kKBlock && s.in_width == view.row_positions &&
                   s.in_height == view.entry_rows && plan->rows.lead + plan->columns.lead == 0 &&
                   view.positions >= kTilePositions;
}

void CopyToTiles(const TileImagePlan& plan, const int8_t* input, int32_t zero_point, int8_t* copy,
                 const ParallelFor& parallel) {
  const int64_t line = plan.columns.pitch * plan.image.bytes, plane_bytes = plan.plane_pixels * plan.image.bytes;
  const int64_t lead = plan.rows.lead * line + plan.columns.lead * plan.image.bytes;
  const int64_t across = static_cast<int64_t>(plan.columns.places.size());
  for (int64_t plane = 0; plane < plan.planes; ++plane) {
    int8_t* to = copy + plane * plane_bytes;
    const int64_t y_place = plan.rows.places[plane / across], x_place = plan.columns.places[plane % across];
    std::memset(to, zero_point, lead);
    const Work work = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        CopyRow(plan, input, i / plan.rows.pitch, i % plan.rows.pitch, y_place, x_place, zero_point,
                to + lead + i * line);
      }
    };
    RunAll(parallel, plan.image.shape.batch * plan.rows.pitch, line / 32 + 1, work);
  }
}

}  // namespace keras_lowbit
