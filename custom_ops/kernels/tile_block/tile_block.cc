#include "kernels/tile_block/tile_block.h"

#include <stdexcept>
#include <string>

#include "kernels/simd/tile_config.h"

namespace keras_lowbit {

TileBlockKernel SelectTileBlock(Isa isa) {
  switch (isa) {
#define KLB_KERNEL(name, function, fewest_pixels, most_products) \
  case Isa::name:                                                \
    return {function, fewest_pixels, most_products};
#include "kernels/tile_block/kernels.inc"
#undef KLB_KERNEL
    default:
      return {};
  }
}

void RefuseTile(const char* what) { throw std::logic_error(std::string("a tile instruction is refused: ") + what); }

}  // namespace keras_lowbit
