// An image as matrix tiles read it: a line of pixels in which every tap of the next output is the next pixel.
//
// Rows follow one another with so much padding between them that what lies right of one row and left of the next is the
// same, and images of a batch likewise. So 16 positions of the line are a tile, wherever rows end: of 56 columns under
// 3x3 one position in 57 is none. With strides there is a plane for each place in the stride that some tap meets.
#pragma once

#include <cstdint>
#include <vector>

#include "core/packing.h"
#include "core/parallel.h"
#include "core/shapes.h"
#include "kernels/tile_block/tile_block.h"
#include "layers/padded_image.h"

namespace keras_lowbit {

// One direction of the planes.
struct TileAxis {
  std::vector<int64_t> places;                // of the stride, that taps meet: a plane each
  std::vector<int64_t> tap_place, tap_shift;  // of each tap: index into places, and pixels from an output's own
  int64_t lead = 0;                           // padding before the first pixel
  int64_t pitch = 0;                          // pixels with the padding that follows
  int64_t most = 0;                           // pixels that some tap meets, padding behind them included
};

struct TileImagePlan {
  PaddedImage image;  // one group's channels, clusters padded to 4 and pixels to 64 bytes; its borders are not used
  TileAxis rows, columns;
  int64_t planes = 0, plane_pixels = 0;
  std::vector<int64_t> tap_offsets;
  TileImage view;         // but for pixels and tap_offsets
  bool in_place = false;  // the image of the call is such a line already, if it is aligned

  int64_t bytes() const { return planes * plane_pixels * image.bytes; }
};

// The axes of a layer's planes, and how many pixels its copy and its line of positions would have.
struct TileSizes {
  double copied, positions;
};
TileSizes PlanTileAxes(const ConvShape& shape, TileImagePlan* plan);

// The rest, for sizes that fit into memory.
void PlanTileImage(const ConvShape& shape, const PackedWeights& weights, const WeightSizes& sizes,
                   const TileLimits& limits, TileImagePlan* plan);

// input: the group's first channel of the first pixel. copy: plan.bytes(), aligned.
void CopyToTiles(const TileImagePlan& plan, const int8_t* input, int32_t zero_point, int8_t* copy,
                 const ParallelFor& parallel);

}  // namespace keras_lowbit
