// Memory that lives for a call, or for a thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>

#include "core/blocks.h"

namespace keras_lowbit {

// Says how much there was not.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes) { std::snprintf(text_, sizeof text_, "no %zu bytes of scratch memory", bytes); }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[64];
};

// Memory of kAlignment that only grows; its contents do not survive growth. Throws OutOfMemory.
class Scratch {
 public:
  template <class T>
  T* Get(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes > bytes_) {
      memory_.reset();
      bytes_ = 0;
      memory_.reset(::operator new(bytes, kAligned, std::nothrow));
      if (memory_ == nullptr) throw OutOfMemory(bytes);
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t kAligned{kAlignment};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAligned); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t bytes_ = 0;
};

}  // namespace keras_lowbit
