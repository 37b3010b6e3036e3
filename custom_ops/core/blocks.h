// Sizes that packed weights, kernels and layers agree on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace keras_lowbit {

// Output channels of one block. Four AVX512 vectors of 16 int32 sums: with 6 pixels, 24 of the 32 registers.
constexpr int kBlockChannels = 64;

// One k-block: consecutive k whose weights stand side by side, as many as one 32-bit lane of vpdpbusd or sdot
// multiplies and adds at once. The channels of a cluster, and the taps of a depthwise layer, are padded to a
// multiple of it.
constexpr int kKBlock = 4;

// Two-bit codes of one byte. They belong to channels that stand kFieldChannels apart, so that one vector of bytes
// decodes to four vectors of neighbouring channels with a shift, a mask or a table, and no permutation.
constexpr int kCodesPerByte = 4;
constexpr int kFieldChannels = kBlockChannels / kCodesPerByte;

// Weights of one block of channels and one k-block.
constexpr int kInt8BlockBytes = kBlockChannels * kKBlock;                     // 256
constexpr int kTernaryBlockBytes = kBlockChannels * kKBlock / kCodesPerByte;  // 64

// Of arrays that kernels read and write as vectors: a cache line, and one AVX512 vector.
constexpr size_t kAlignment = 64;

}  // namespace keras_lowbit
