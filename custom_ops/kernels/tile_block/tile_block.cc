#include "kernels/tile_block/tile_block.h"

#include <stdexcept>
#include <string>

#include "kernels/simd/tile_config.h"

namespace keras_lowbit {
namespace {

const TileLimits* measured_limits = nullptr;

TileBlockKernel WithLimits(decltype(TileBlockKernel::run) run, const TileLimits& own) {
  return {run, measured_limits == nullptr ? own : *measured_limits};
}

}  // namespace

TileBlockKernel SelectTileBlock(Isa isa) {
  switch (isa) {
#define KLB_KERNEL(name, function, fewest_pixels, most_products, most_steps, most_steps_of_many) \
  case Isa::name:                                                                                \
    return WithLimits(function, {fewest_pixels, most_products, most_steps, most_steps_of_many});
#include "kernels/tile_block/kernels.inc"
#undef KLB_KERNEL
    default:
      return {};
  }
}

void SetTileLimits(const TileLimits* limits) { measured_limits = limits; }

void RefuseTile(const char* what) { throw std::logic_error(std::string("a tile instruction is refused: ") + what); }

}  // namespace keras_lowbit
