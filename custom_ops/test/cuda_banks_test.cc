// Bank conflicts of the CUDA kernels' shared memory, counted from the index functions that the kernels use: every access of
// every warp, for each kind of weights and both tiles. Prints a table; an access that takes more passes than its bytes ask for
// fails the test.
//
// Shared memory has 32 banks of 4 bytes; lanes that want the same word share a pass. Accesses of 8 and 16 bytes a lane go by
// half and quarter warps (CUDA C++ Programming Guide; each is 128 bytes at a time).
#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "cuda/conv_body.h"
#include "cuda/row_body.h"
#include "test/check.h"

namespace keras_lowbit::cuda {
namespace {

constexpr int kBanks = 32;
constexpr int kIdle = -1;

// Passes beyond the one that each 128 bytes take. words: the first word of each lane of a warp, or kIdle.
int ExtraPasses(const std::vector<int>& words, int bytes) {
  const int together = kLanes * 4 / bytes;
  int extra = 0;
  for (int first = 0; first < kLanes; first += together) {
    std::set<int> of_bank[kBanks];
    for (int lane = first; lane < first + together; ++lane) {
      if (words[lane] == kIdle) continue;
      for (int i = 0; i < bytes / 4; ++i) of_bank[(words[lane] + i) % kBanks].insert(words[lane] + i);
    }
    size_t most = 1;
    for (const auto& wanted : of_bank) most = std::max(most, wanted.size());
    extra += static_cast<int>(most) - 1;
  }
  return extra;
}

// Adds up the accesses of one kind. `word` gives a thread's first word, or kIdle.
class Count {
 public:
  Count(std::string tile, const char* what, int bytes) : name_(tile + ", " + what), bytes_(bytes) {}
  template <class Word>
  void Add(const Word& word) {
    for (int warp = 0; warp < kWarps; ++warp) {
      std::vector<int> words;
      for (int lane = 0; lane < kLanes; ++lane) words.push_back(word(warp * kLanes + lane));
      ++accesses_;
      extra_ += ExtraPasses(words, bytes_);
    }
  }
  int Print() const {
    std::printf("%-44s %2d bytes a lane %5d accesses %4d extra passes\n", name_.c_str(), bytes_, accesses_, extra_);
    return extra_;
  }

 private:
  std::string name_;
  int bytes_, accesses_ = 0, extra_ = 0;
};

template <WeightKind kKind, int kRowTiles>
class StageBanks {
 public:
  explicit StageBanks(const char* name) : name_(name) {}

  int Loads() const {
    Count matrices(name_, "activations by ldmatrix", 16);
    Count image(name_, "activations to registers", 4), weights(name_, "weights to registers", 4),
        scales(name_, "scales to registers", 4);
    for (int first = 0; first < kTileKBlocks; first += kFragmentKBlocks) {
      for (int tile = 0; tile < kRowTiles; ++tile) {
        matrices.Add([&](int t) { return 4 * ImageMatrixVector(t, kRowTiles, tile, first); });
        for (int i = 0; i < 4; ++i) {
          image.Add([&](int t) { return ImageFragmentWord(PlaceOfThread(t), kRowTiles, tile, first, i); });
        }
      }
      for (int half = 0; half < 2; ++half) {
        for (int field = 0; field < (kKind == WeightKind::kInt8 ? kFields : 1); ++field) {
          weights.Add([&](int t) { return WeightAt(PlaceOfThread(t), first, half, field); });
        }
        for (int field = 0; field < kFields; ++field) {
          scales.Add([&](int t) { return ScaleAt(PlaceOfThread(t), first, half, field); });
        }
      }
    }
    const int extra = matrices.Print() + image.Print() + weights.Print();
    return extra + (kKind == WeightKind::kTernaryScaled ? scales.Print() : 0);
  }

  int Stores() const {
    using Registers = ConvRegisters<kRowTiles>;
    constexpr int kVectors = WeightWords(kKind) / kVectorWords;
    Count image(name_, "activations from memory", 16), weights(name_, "weights from memory", 16),
        scales(name_, "scales from memory", 16);
    scales.Add([](int t) { return t / 4 < kTileKBlocks ? 4 * ScaleVector(t / 4, t % 4) : kIdle; });
    for (int i = 0; i < Registers::kLoads; ++i) {
      image.Add([&](int t) { return 4 * ImageVector(t / kRowVectors + i * kLoaderPixels, t % kRowVectors); });
    }
    for (int begin = 0; begin < kTileKBlocks * kVectors; begin += kThreads) {
      weights.Add([&](int t) {
        const int i = begin + t;
        return i < kTileKBlocks * kVectors ? 4 * WeightVector(kKind, i / kVectors, i % kVectors) : kIdle;
      });
    }
    return image.Print() + weights.Print() + (kKind == WeightKind::kTernaryScaled ? scales.Print() : 0);
  }

  int Totals() const {
    Count stores(name_, "totals from registers", 8), loads(name_, "totals to the epilogue", 16);
    for (int tile = 0; tile < kRowTiles; ++tile) {
      for (int field = 0; field < kFields; ++field) {
        for (int i = 0; i < 4; i += 2) {
          stores.Add([&](int t) { return TotalOf(PlaceOfThread(t), tile, field, i); });
        }
      }
    }
    constexpr int kQuads = kBlockChannels / 4;
    for (int row = 0; row < ConvTile<kKind, kRowTiles>::kHalfPixels; row += kThreads / kQuads) {
      loads.Add([&](int t) { return (row + t / kQuads) * kTotalsStride + t % kQuads * 4; });
    }
    return stores.Print() + loads.Print();
  }

 private:
  static int WeightAt(const LanePlace& place, int first, int half, int field) {
    const int channel = FragmentChannel(place) + (kKind == WeightKind::kInt8 ? kFieldChannels * field : 0);
    return WeightWord(kKind, FragmentKBlock(place, first, half), channel);
  }
  // Of the first half; the warps of the second do the same later.
  static int TotalOf(const LanePlace& place, int tile, int field, int i) {
    return place.pixel_half == 0 ? TotalWord(place, tile, field, i) : kIdle;
  }
  static int ScaleAt(const LanePlace& place, int first, int half, int field) {
    return ScaleVector(FragmentKBlock(place, first, half), field) * kVectorWords + FragmentChannel(place) / 4;
  }

  std::string name_;
};

template <WeightKind kKind>
int RowBanks(const char* name) {
  using Tile = RowTile<kKind>;
  Count stores(name, "sums from registers", 16), loads(name, "sums of a channel", 4);
  for (int field = 0; field < Tile::kFieldsOfWord; ++field) {
    stores.Add([&](int t) {
      return t / Tile::kVectors * Tile::kStride + RowChannel<kKind>(t % Tile::kVectors, 0, field);
    });
  }
  for (int i = 0; i < Tile::kRows; ++i) {
    loads.Add([&](int t) { return t < kBlockChannels ? i * Tile::kStride + t : kIdle; });
  }
  return stores.Print() + loads.Print();
}

template <WeightKind kKind>
void CheckKind(const std::string& name) {
  const StageBanks<kKind, 4> large((name + " 128").c_str());
  const StageBanks<kKind, 1> small((name + " 32").c_str());
  const int loads = large.Loads() + small.Loads(), stores = large.Stores() + small.Stores();
  const int totals = large.Totals() + small.Totals(), row = RowBanks<kKind>((name + " row").c_str());
  KLB_CHECK(loads == 0, name + ": fragments come with conflicts");
  KLB_CHECK(stores == 0, name + ": stages are filled with conflicts");
  KLB_CHECK(totals == 0, name + ": totals are staged with conflicts");
  KLB_CHECK(row == 0, name + ": sums of rows are staged with conflicts");
}

// The counting itself: a column of a matrix of 32 words a row, the same word for all, and two rows of 16 bytes a lane.
void CheckCounting() {
  std::vector<int> column, same(kLanes, 7), vectors;
  for (int lane = 0; lane < kLanes; ++lane) {
    column.push_back(32 * lane);
    vectors.push_back(4 * (lane % 4) + 64 * (lane / 4));
  }
  KLB_CHECK(ExtraPasses(column, 4) == 31, "a column");
  KLB_CHECK(ExtraPasses(same, 4) == 0, "one word");
  KLB_CHECK(ExtraPasses(vectors, 16) == 4, "two rows in the same banks, four quarters");
}

}  // namespace
}  // namespace keras_lowbit::cuda

int main() {
  using namespace keras_lowbit::cuda;
  CheckCounting();
  CheckKind<WeightKind::kTernary>("ternary");
  CheckKind<WeightKind::kTernaryScaled>("clusters");
  CheckKind<WeightKind::kInt8>("int8");
  return 0;
}
