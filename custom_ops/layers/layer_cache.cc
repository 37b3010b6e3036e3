#include "layers/layer_cache.h"

#include <cstring>

namespace keras_lowbit {

std::shared_ptr<const void> KeptResult::Find(const Pieces& made_from) const {
  std::shared_ptr<const Entry> entry;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    entry = entry_;
  }
  if (entry == nullptr) return nullptr;
  for (size_t i = 0; i < made_from.size(); ++i) {
    const Piece& piece = made_from[i];
    const std::vector<char>& bytes = entry->made_from[i];
    if (static_cast<int64_t>(bytes.size()) != piece.bytes) return nullptr;
    if (piece.bytes > 0 && std::memcmp(bytes.data(), piece.data, bytes.size()) != 0) return nullptr;
  }
  return entry->made;
}

void KeptResult::Keep(const Pieces& made_from, std::shared_ptr<const void> made) {
  const auto entry = std::make_shared<Entry>();
  for (size_t i = 0; i < made_from.size(); ++i) {
    const auto* bytes = static_cast<const char*>(made_from[i].data);
    entry->made_from[i].assign(bytes, bytes + made_from[i].bytes);
  }
  entry->made = std::move(made);
  std::lock_guard<std::mutex> lock(mutex_);
  entry_ = entry;
}

}  // namespace keras_lowbit
