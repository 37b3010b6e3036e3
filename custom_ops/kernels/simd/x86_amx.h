// The tile instructions of AMX. As text: the intrinsics of GCC 12 name no memory, and registers must be literals there.
#pragma once

#include <cstdint>

#include "kernels/simd/tile_config.h"

namespace keras_lowbit {
namespace {

// Tiles of this thread, configured while it lives. Others in the process (oneDNN, XNNPACK) have configurations of their
// own, and some remember them: what was there comes back, and where nothing was the tiles are released, since a thread
// with tiles in use is slower to switch.
class AmxTiles {
 public:
  explicit AmxTiles(const TileConfig& config) {
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~AmxTiles() {
    if (before_.palette == 0) {
      asm volatile("tilerelease" ::: "memory");
    } else {
      asm volatile("ldtilecfg %0" : : "m"(before_) : "memory");
    }
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  template <int kTile>
  void Load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void Store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTotal, int kX, int kW>
  void Dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kTotal), "i"(kX), "i"(kW));
  }

 private:
  TileConfig before_;
};

}  // namespace
}  // namespace keras_lowbit
