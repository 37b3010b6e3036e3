// x86_amx for machines without tiles: everything but the tile instructions is the same.
#include "kernels/simd/emulated_tiles.h"
#include "kernels/simd/x86_avx512_panel.h"

namespace keras_lowbit {

void TileBlockAmxEmulated(const TileArgs& args, const TileTask* tasks, int64_t count) {
  RunTileBlock<EmulatedTiles, Avx512Panel>(args, tasks, count);
}

}  // namespace keras_lowbit
