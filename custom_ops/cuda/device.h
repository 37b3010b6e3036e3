// What the kernels' bodies are written with, and small reads and writes of memory.
//
// A body is a function of a `Block`: the threads of one block, which run a step of the body each (ForThreads) and meet
// (Sync). cuda/kernels.cu has the GPU's Block, test/emulated_block.h two for the CPU. Under a CUDA compiler bodies are
// device code alone.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/blocks.h"
#include "core/host_device.h"

#if defined(__CUDACC__)
#define KLB_DEVICE __device__ __forceinline__
#define KLB_DEVICE_UNROLL _Pragma("unroll")
#define KLB_DEVICE_NO_UNROLL _Pragma("unroll 1")
#else
#define KLB_DEVICE inline
#define KLB_DEVICE_UNROLL
#define KLB_DEVICE_NO_UNROLL
#endif

namespace keras_lowbit::cuda {

struct alignas(16) Vector {
  uint32_t words[4];
};

KLB_DEVICE bool IsAligned(const void* address, uintptr_t bytes) {
  return (reinterpret_cast<uintptr_t>(address) & (bytes - 1)) == 0;
}

KLB_DEVICE uint32_t LoadWord(const void* aligned) {
#if defined(__CUDA_ARCH__)
  return *static_cast<const uint32_t*>(aligned);
#else
  uint32_t word;
  std::memcpy(&word, aligned, 4);
  return word;
#endif
}

KLB_DEVICE Vector LoadVector(const void* aligned) {
#if defined(__CUDA_ARCH__)
  return *static_cast<const Vector*>(aligned);
#else
  Vector vector;
  std::memcpy(&vector, aligned, sizeof(vector));
  return vector;
#endif
}

// `count` (1..4) bytes as a word, the others 0; nothing behind them is read.
KLB_DEVICE uint32_t LoadBytes(const int8_t* bytes, int count) {
  if (count == 4 && IsAligned(bytes, 4)) return LoadWord(bytes);
  uint32_t word = 0;
  for (int i = 0; i < count; ++i) word |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  return word;
}

KLB_DEVICE void StoreBytes(uint32_t word, int8_t* bytes, int count) {
  if (count == 4 && IsAligned(bytes, 4)) {
#if defined(__CUDA_ARCH__)
    *reinterpret_cast<uint32_t*>(bytes) = word;
#else
    std::memcpy(bytes, &word, 4);
#endif
    return;
  }
  for (int i = 0; i < count; ++i) bytes[i] = static_cast<int8_t>(word >> (8 * i));
}

// Two words to an address of a multiple of 8 bytes, at once.
KLB_DEVICE void StorePair(int32_t* aligned, int32_t first, int32_t second) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<int2*>(aligned) = make_int2(first, second);
#else
  aligned[0] = first, aligned[1] = second;
#endif
}

KLB_HOST_DEVICE inline int32_t ByteOf(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }

KLB_HOST_DEVICE inline uint32_t FourTimes(int32_t code) { return static_cast<uint8_t>(code) * 0x01010101u; }

// Sum of the products of the four signed bytes of x and w, added to `sum`; wraps.
KLB_DEVICE int32_t DotAdd(uint32_t x, uint32_t w, int32_t sum) {
#if defined(__CUDA_ARCH__)
  return __dp4a(static_cast<int32_t>(x), static_cast<int32_t>(w), sum);
#else
  uint32_t total = static_cast<uint32_t>(sum);
  for (int i = 0; i < 4; ++i) total += static_cast<uint32_t>(ByteOf(x, i) * ByteOf(w, i));
  return static_cast<int32_t>(total);
#endif
}

}  // namespace keras_lowbit::cuda
