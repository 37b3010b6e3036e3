// Integer layers on low-bit weights: what the ops, the tests and the benchmark call.
//
// x: int8 NHWC, contiguous. y: NHWC, contiguous, int8, int32 or float by `Epilogue::type`; core/epilogue.h says what
// the numbers are. Input, output and weights do not overlap; the residual's codes may be the output's memory, which is
// written last. Every ISA target gives the same bits. Functions are thread-safe; each returns an error (and writes
// nothing) for sizes or values that do not fit: no input crashes them as long as the pointers hold what the shapes say.
// Where memory is short they throw std::bad_alloc, on the caller's thread whichever ran out of it; the output is then
// undefined, and the next call works.
#pragma once

#include <cstdint>

#include "core/epilogue.h"
#include "core/packing.h"
#include "core/parallel.h"
#include "core/shapes.h"
#include "core/status.h"

namespace keras_lowbit {

// A layer's constants in the order in which kernels read them, and how the last call ran, kept from one call to the
// next (layers/layer_cache.h): found again by contents, so that every call may bring other arrays, and other shapes.
// Thread-safe. Only with
// one, from the second call on, does a layer look for float32 requantization (layers/fp32_requantize.h), which takes
// milliseconds once. Null: nothing is kept.
class LayerCache;

// weights.layout kTernary2Bit or kInt8; ternary with clusters: see packing.h. output: output_size() elements.
Status Conv2D(const ConvShape& shape, const PackedWeights& weights, const int8_t* input, int32_t input_zero_point,
              const Epilogue& epilogue, void* output, const ParallelFor& parallel, LayerCache* cache = nullptr);

// The same for rows of features; a batch of one reads every weight once, straight from the packed bytes.
Status Dense(const DenseShape& shape, const PackedWeights& weights, const int8_t* input, int32_t input_zero_point,
             const Epilogue& epilogue, void* output, const ParallelFor& parallel, LayerCache* cache = nullptr);

// kernel: int8 [kernel_height, kernel_width, in_channels, depth_multiplier], not packed; output channel
// `c * depth_multiplier + m`, depth_multiplier = out_channels / in_channels.
Status DepthwiseConv2D(const ConvShape& shape, const int8_t* kernel, const int8_t* input, int32_t input_zero_point,
                       const Epilogue& epilogue, void* output, const ParallelFor& parallel,
                       LayerCache* cache = nullptr);

// The largest code of each window, then clamped. shape: as many output as input channels, groups and dilations of 1.
// Pixels outside the image count as `padding_code`; -128 never wins.
Status MaxPool2D(const ConvShape& shape, const int8_t* input, int32_t padding_code, int32_t clamp_min,
                 int32_t clamp_max, int8_t* output, const ParallelFor& parallel);

}  // namespace keras_lowbit
