#include "kernels/simd/x86_amx.h"

#include "kernels/simd/x86_avx512_panel.h"

namespace keras_lowbit {

void TileBlockAmx(const TileArgs& args, const TileTask* tasks, int64_t count) {
  RunTileBlock<AmxTiles, Avx512Panel>(args, tasks, count);
}

}  // namespace keras_lowbit
