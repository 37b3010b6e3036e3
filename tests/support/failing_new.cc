// Preloaded, it makes `operator new` fail for one library: allocation number n of those that its own code asks for, and
// all that follow. Everybody else's succeed.
#include <link.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr char kLibrary[] = "keras_lowbit_ops";
std::atomic<long> left{-1}, refused{0};
std::atomic<uintptr_t> begin{0}, end{0};  // where its code lies

int FindCode(dl_phdr_info* info, size_t, void*) {
  if (std::strstr(info->dlpi_name, kLibrary) == nullptr) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || (part.p_flags & PF_X) == 0) continue;
    begin = info->dlpi_addr + part.p_vaddr;
    end = begin + part.p_memsz;
  }
  return 1;
}

bool Fails(const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  if (left.load() < 0 || address < begin || address >= end) return false;
  if (left.fetch_sub(1) > 0) return false;
  left = 0;
  ++refused;
  return true;
}

void* Allocate(const void* caller, size_t bytes, size_t alignment) {
  if (Fails(caller)) return nullptr;
  if (alignment <= alignof(std::max_align_t)) return std::malloc(bytes == 0 ? 1 : bytes);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

void* AllocateOrThrow(const void* caller, size_t bytes, size_t alignment) {
  if (void* memory = Allocate(caller, bytes, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

extern "C" void FailFrom(long n) {
  dl_iterate_phdr(FindCode, nullptr);
  refused = 0, left = n;
}
// How many were refused since; from now on none is.
extern "C" long Refused() {
  left = -1;
  return refused;
}

#define CALLER __builtin_return_address(0)
void* operator new(size_t bytes) { return AllocateOrThrow(CALLER, bytes, 1); }
void* operator new[](size_t bytes) { return AllocateOrThrow(CALLER, bytes, 1); }
void* operator new(size_t bytes, std::align_val_t to) {
  return AllocateOrThrow(CALLER, bytes, static_cast<size_t>(to));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return Allocate(CALLER, bytes, 1); }
void* operator new(size_t bytes, std::align_val_t to, const std::nothrow_t&) noexcept {
  return Allocate(CALLER, bytes, static_cast<size_t>(to));
}
