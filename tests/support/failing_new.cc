// Preloaded, it makes `operator new` fail for one library: allocation number n of those that it asks for, and all that
// follow. Allocations inside the C++ library count for whoever called that; everybody else's succeed.
#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long> left{-1}, refused{0};
const char* const kLibrary = "keras_lowbit_ops";

bool IsIn(const void* address, const char* name) {
  Dl_info info;
  return dladdr(address, &info) != 0 && std::strstr(info.dli_fname, name) != nullptr;
}

// Whether the first frame beyond this file and the C++ library is of kLibrary.
bool IsAsked() {
  void* frames[12];
  const int count = backtrace(frames, 12);
  for (int i = 0; i < count; ++i) {
    if (!IsIn(frames[i], "failing_new") && !IsIn(frames[i], "libstdc++")) return IsIn(frames[i], kLibrary);
  }
  return false;
}

bool Fails() {
  if (left.load() < 0 || !IsAsked()) return false;
  if (left.load() > 0) {
    --left;
    return false;
  }
  ++refused;
  return true;
}

void* Allocate(size_t bytes, size_t alignment) {
  if (Fails()) return nullptr;
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, bytes == 0 ? 1 : bytes) == 0 ? memory : nullptr;
}

void* AllocateOrThrow(size_t bytes, size_t alignment) {
  if (void* memory = Allocate(bytes, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

extern "C" void FailFrom(long n) { refused = 0, left = n; }
extern "C" long Refused() {
  left = -1;
  return refused;
}

void* operator new(size_t bytes) { return AllocateOrThrow(bytes, 16); }
void* operator new[](size_t bytes) { return AllocateOrThrow(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t to) { return AllocateOrThrow(bytes, static_cast<size_t>(to)); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return Allocate(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t to, const std::nothrow_t&) noexcept {
  return Allocate(bytes, static_cast<size_t>(to));
}
