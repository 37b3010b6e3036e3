// What a layer forms from its constants and shapes before it runs, kept from one call to the next.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace keras_lowbit {

// Holds one result and a copy of every byte that it was made from. It is found again by content, never by address, so
// each call may bring other arrays. Thread-safe.
class KeptResult {
 public:
  struct Piece {
    const void* data;
    int64_t bytes;
  };
  using Pieces = std::array<Piece, 6>;

  // What was kept for exactly these bytes, or null.
  std::shared_ptr<const void> Find(const Pieces& made_from) const;
  void Keep(const Pieces& made_from, std::shared_ptr<const void> made);

 private:
  struct Entry {
    std::array<std::vector<char>, 6> made_from;
    std::shared_ptr<const void> made;
  };
  mutable std::mutex mutex_;
  std::shared_ptr<const Entry> entry_;
};

// Of one layer. Calls of other shapes have other plans and the same constants.
class LayerCache {
 public:
  KeptResult constants, plan;
};

}  // namespace keras_lowbit
