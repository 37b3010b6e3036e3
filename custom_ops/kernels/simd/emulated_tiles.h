// The tile instructions of AMX in plain C++, by the pseudo-code of the x86 manual. What the machine would refuse, and
// reading a tile that was never written, is an error.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/simd/tile_config.h"

namespace keras_lowbit {
namespace {

class EmulatedTiles {
 public:
  // As AmxTiles: configured while it lives; without a configuration every instruction is refused.
  EmulatedTiles() = default;
  explicit EmulatedTiles(const TileConfig& config) { LoadConfig(config); }

  void LoadConfig(const TileConfig& config) {
    Release();
    if (config.palette == 0) return;
    if (config.palette != 1) RefuseTile("a palette other than 0 and 1");
    if (config.start_row >= kMaxTileRows) RefuseTile("a start row beyond the last");
    for (uint8_t byte : config.reserved) {
      if (byte != 0) RefuseTile("reserved bytes of the configuration that are not zero");
    }
    for (int t = 0; t < 16; ++t) CheckForm(t, config.rows[t], config.row_bytes[t]);
    config_ = config;
    std::memset(data_, 0, sizeof data_);
  }
  void Release() {
    config_ = TileConfig();
    for (bool& written : written_) written = false;
  }

  template <int kTile>
  void Zero() {
    CheckConfigured(kTile);
    Clear(kTile);
  }

  template <int kTile>
  void Load(const void* from, int64_t stride) {
    CheckConfigured(kTile);
    Clear(kTile);
    for (int r = 0; r < config_.rows[kTile]; ++r)
      std::memcpy(data_[kTile][r], static_cast<const char*>(from) + r * stride, config_.row_bytes[kTile]);
  }

  template <int kTile>
  void Store(void* to, int64_t stride) const {
    CheckWritten(kTile);
    for (int r = 0; r < config_.rows[kTile]; ++r)
      std::memcpy(static_cast<char*>(to) + r * stride, data_[kTile][r], config_.row_bytes[kTile]);
  }

  // total[m][n] += sum over k and i < 4 of x[m][4 k + i] * w[k][4 n + i], both signed.
  template <int kTotal, int kX, int kW>
  void Dot() {
    static_assert(kTotal != kX && kTotal != kW && kX != kW, "three different tiles");
    for (int tile : {kTotal, kX, kW}) CheckWritten(tile);
    CheckProduct(kTotal, kX, kW);
    for (int m = 0; m < config_.rows[kTotal]; ++m) {
      uint32_t total[kMaxTileRowBytes / 4];
      std::memcpy(total, data_[kTotal][m], sizeof total);
      for (int k = 0; k < config_.row_bytes[kX] / 4; ++k) {
        const int8_t *x = data_[kX][m] + 4 * k, *w = data_[kW][k];
        for (int n = 0; n < config_.row_bytes[kTotal] / 4; ++n, w += 4)
          total[n] += static_cast<uint32_t>(x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3]);
      }
      std::memcpy(data_[kTotal][m], total, sizeof total);
    }
  }

 private:
  static void CheckForm(int tile, int rows, int row_bytes) {
    if (tile >= kTileRegisters && (rows != 0 || row_bytes != 0)) RefuseTile("a tile beyond the last register");
    if (rows > kMaxTileRows) RefuseTile("more than 16 rows");
    if (row_bytes > kMaxTileRowBytes) RefuseTile("rows of more than 64 bytes");
    if ((rows == 0) != (row_bytes == 0)) RefuseTile("rows without bytes, or bytes without rows");
  }
  void CheckConfigured(int tile) const {
    if (config_.palette == 0) RefuseTile("used before configuration");
    if (config_.rows[tile] == 0) RefuseTile("a tile that is not configured");
  }
  void CheckWritten(int tile) const {
    CheckConfigured(tile);
    if (!written_[tile]) RefuseTile("a tile is read before it was written");
  }
  void CheckProduct(int total, int x, int w) const {
    const bool fits = config_.rows[total] == config_.rows[x] && config_.row_bytes[total] == config_.row_bytes[w] &&
                      config_.row_bytes[x] == 4 * config_.rows[w] && config_.row_bytes[total] % 4 == 0;
    if (!fits) RefuseTile("tiles whose sizes do not fit in a product");
  }
  void Clear(int tile) {
    std::memset(data_[tile], 0, sizeof data_[tile]);
    written_[tile] = true;
  }

  TileConfig config_;
  bool written_[kTileRegisters] = {};
  alignas(kAlignment) int8_t data_[kTileRegisters][kMaxTileRows][kMaxTileRowBytes] = {};
};

}  // namespace
}  // namespace keras_lowbit
