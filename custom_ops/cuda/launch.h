// The layers of layers/layers.h on a CUDA device: plain pointers, shapes and a stream, no framework. Results equal the
// CPU's integer for integer.
//
// All data pointers are the device's; codes and scales begin at multiples of 16 bytes. A call puts its work on the stream
// and returns; an error of the work itself is the stream's. Of the epilogue, shifts stay unchecked (plan.h). The
// residual's codes may be the output's memory. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "core/epilogue.h"
#include "core/packing.h"
#include "core/shapes.h"
#include "core/status.h"
#include "cuda/plan.h"

namespace keras_lowbit::cuda {

using Stream = void*;  // a cudaStream_t; null: the default stream

// What the device of the calling thread is, asked once a device. Error if there is none, or no driver that fits.
struct Device {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int processors = 0;
  bool has_tensor_cores = false;  // runs mma.sync.m16n8k32; else products of four bytes (cuda/dots.h)
  std::string product;            // by name
  int driver = 0, runtime = 0;    // as 1000 * major + 10 * minor
};
Status CurrentDevice(Device* device);

// Bytes of device memory that a call of Conv2D needs beside its tensors, often 0.
Status WorkspaceBytes(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call, int64_t* bytes);

Status Conv2D(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call, void* workspace,
              Stream stream);

// kernel: int8 [kernel_height, kernel_width, in_channels, depth_multiplier].
Status DepthwiseConv2D(const ConvShape& shape, const int8_t* kernel, const ConvCall& call, Stream stream);

Status MaxPool2D(const ConvShape& shape, const int8_t* input, int32_t padding_code, int32_t clamp_min,
                 int32_t clamp_max, int8_t* output, Stream stream);

Status LookUp(const int8_t* input, int64_t size, const int8_t* table, int8_t* output, Stream stream);
Status LookUpPair(const int8_t* first, const int8_t* second, int64_t size, const int8_t* table, int8_t* output,
                  Stream stream);

// Multiplier, shift and int32 bias of each channel, as core/output_factors.h defines them, one row of `output` each.
// bias: in reals, or null.
Status OutputFactors(const float* scale, const float* bias, int64_t channels, float input_scale, float output_scale,
                     int32_t* output, Stream stream);

// As PackWeights of core/packing.h, from a kernel on the device whose values are not looked at.
Status PackWeights(const ConvShape& shape, const PackedWeights& weights, const int8_t* kernel, uint8_t* codes,
                   int32_t* sums, Stream stream);

}  // namespace keras_lowbit::cuda
