// x86_amx in plain C++, for any machine: slow, for tests of its order of work.
#include "kernels/simd/emulated_tiles.h"
#include "kernels/simd/tiles.h"

namespace keras_lowbit {
namespace {

struct PlainPanel {
  struct Bytes {
    int8_t values[kTernaryBlockBytes];
  };
  static Bytes Load(const int8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
  }
  static void StoreBytes(int8_t* to, const Bytes& bytes) { std::memcpy(to, &bytes, sizeof bytes); }
  template <int kHalf>
  static void DecodeHalf(const uint8_t* codes, Bytes* w) {
    for (int f = 0; f < 2; ++f) {
      const int bits = 2 * (2 * kHalf + f);
      for (int i = 0; i < kTernaryBlockBytes; ++i) w[f].values[i] = static_cast<int8_t>(((codes[i] >> bits) & 3) - 1);
    }
  }
  static Bytes SpreadScales(const int8_t* scales) {
    Bytes bytes;
    for (int i = 0; i < kTernaryBlockBytes; ++i) bytes.values[i] = scales[i / kKBlock];
    return bytes;
  }
  static Bytes Scale(const Bytes& t, const Bytes& scale) {
    Bytes bytes;
    for (int i = 0; i < kTernaryBlockBytes; ++i) bytes.values[i] = static_cast<int8_t>(t.values[i] * scale.values[i]);
    return bytes;
  }
  static void ApplyEpilogue(const TileTask& task, const PreparedEpilogue& prepared, int field, const int32_t* totals,
                            int64_t pixel, int64_t count) {
    const int64_t from = kFieldChannels * field, channels = Least(task.channels - from, kPanelChannels);
    ApplyScalar(prepared, totals, pixel, task.first_channel + from, count, channels);
  }
};

}  // namespace

void TileBlockReferenceAmx(const TileArgs& args, const TileTask* tasks, int64_t count) {
  RunTileBlock<EmulatedTiles, PlainPanel>(args, tasks, count);
}

}  // namespace keras_lowbit
