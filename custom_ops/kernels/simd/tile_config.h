// What `ldtilecfg` loads: the form of each tile register, by the x86 manual.
#pragma once

#include <cstdint>

#include "core/blocks.h"

namespace keras_lowbit {

constexpr int kTileRegisters = 8, kMaxTileRows = 16, kMaxTileRowBytes = 64;

struct alignas(kAlignment) TileConfig {
  uint8_t palette = 0;  // 0: nothing is configured; 1: eight tiles of up to 16 rows of 64 bytes
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "as the machine reads it");

// Throws std::logic_error: what the machine would end the process for.
[[noreturn]] void RefuseTile(const char* what);

namespace {

// All eight at full size.
inline TileConfig WholeTiles() {
  TileConfig config;
  config.palette = 1;
  for (int t = 0; t < kTileRegisters; ++t) config.row_bytes[t] = kMaxTileRowBytes, config.rows[t] = kMaxTileRows;
  return config;
}

}  // namespace
}  // namespace keras_lowbit
