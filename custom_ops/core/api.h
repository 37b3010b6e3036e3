// Integer layers on low-bit weights: the whole public face of custom_ops/core and custom_ops/kernels.
//
//   total[pixel][oc]  = sum over taps and channels of (x - input_zero_point) * w[oc]  + bias[oc]     (int32, wraps)
//   kInt8    y = clamp(requantize(total) + zero_point), then the optional residual ADD
//   kInt32   y = total
//   kFloat   y = clamp(float(total) * float_scale[oc])     one rounding of the product; no fused multiply-add
//
// x: int8 NHWC, contiguous. y: NHWC, contiguous, int8, int32 or float by `Epilogue::type`. Input, output and
// weights do not overlap. Every ISA target gives the same bits. Functions are thread-safe; each returns an error
// (and writes nothing) for sizes or values that do not fit: no input crashes them as long as the pointers hold what the
// shapes say.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/packing.h"
#include "core/shapes.h"
#include "core/status.h"

namespace keras_lowbit {

enum class OutputType : int32_t { kInt8 = 0, kInt32 = 1, kFloat = 2 };

// int32 total -> int8 code, exactly as LiteRT's reference kernels. Either `multiplier` and `shift` (convolutions:
// fixed point, rounded twice: keras_lowbit/deploy/fixed_point.py) or `factor` (FULLY_CONNECTED: in double, halves
// away from zero, rounded once). One value per output channel. Shifts lie in [-31, 31], positive means left.
struct Requantize {
  const int32_t* multiplier = nullptr;
  const int32_t* shift = nullptr;
  const double* factor = nullptr;
  int32_t zero_point = 0;
  int32_t clamp_min = -128, clamp_max = 127;  // the fused activation; zero point included
};

// A residual ADD as one float32 expression; see ResidualAdd.
struct ResidualLine {
  bool equal = false;  // to the definition, for every pair of codes
  float own = 0, other = 0, offset = 0;
};

// LiteRT's ADD of the layer's int8 codes and `codes` (same shape as the output), grid 2 * max(s1, s2) / 2**20:
//   a = fixed((y - y_zero_point) << 20, first), b = fixed((codes - zero_point) << 20, second)
//   out = clamp(fixed(a + b, output) + output_zero_point)
// Multiplier and shift of s1 / grid, s2 / grid, grid / (2**20 * s_out) as `quantize_multiplier` gives them.
// A `line` that is marked equal may stand in for all of it, in float32, each fma and the rounding to even done once:
//   out = clamp(round(fma(y - y_zero_point, own, fma(codes, other, offset))) + output_zero_point)
struct ResidualAdd {
  const int8_t* codes = nullptr;  // null: no residual
  int32_t zero_point = 0;
  int32_t first_multiplier = 0, first_shift = 0;    // of the layer's own codes
  int32_t second_multiplier = 0, second_shift = 0;  // of `codes`
  int32_t output_multiplier = 0, output_shift = 0;
  int32_t output_zero_point = 0;
  int32_t clamp_min = -128, clamp_max = 127;
  ResidualLine line;
};

struct Epilogue {
  OutputType type = OutputType::kInt8;
  const int32_t* bias = nullptr;       // [out_channels], null: zeros
  Requantize requantize;               // kInt8
  ResidualAdd residual;                // kInt8
  const float* float_scale = nullptr;  // kFloat, [out_channels]
  float float_min = -3.402823466e38f, float_max = 3.402823466e38f;
};

// The line of an addition behind `own`, whose factors are not read: tried on all pairs of codes, a few milliseconds,
// once for a layer. Not equal where the double rounding or a tie needs integers, and for numbers that
// Conv2D would refuse.
ResidualLine FindResidualLine(const Requantize& own, const ResidualAdd& add);

// Runs work(begin, end) over all of [0, count), in parts, on the caller's threads, and returns when all are done.
// `cost` estimates the nanoseconds of one index. Empty: the calling thread does it all.
using Work = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t count, int64_t cost, const Work& work)>;

inline void RunAll(const ParallelFor& parallel, int64_t count, int64_t cost, const Work& work) {
  if (parallel == nullptr || count <= 1) return work(0, count);
  parallel(count, cost, work);
}

// A layer's constants in the order in which kernels read them, kept from one call to the next (layers/layer_cache.h):
// found again by their contents, so that every call may bring other arrays, and other shapes. Thread-safe. Only with
// one, from the second call on, does a layer look for shorter ways of requantisation (layers/factor_line.h), which
// takes milliseconds once. Null: nothing is kept.
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

// ISA targets: "x86_avx512vnni", "x86_avx2", "arm_dotprod", "arm_neon", "reference"; best first, this CPU's only.
std::vector<std::string> AvailableKernels();

// All targets compiled into this library, with the CPU features each needs: for `doctor`.
struct KernelInfo {
  std::string name, needs;
  bool supported;
};
std::vector<KernelInfo> CompiledKernels();

// The target in use: the forced one, else the environment's KERAS_LOWBIT_KERNEL (read once, at the first use), else
// the first available. An error that lists the choices for an unknown name or one that this CPU cannot run; the
// layers above then return the same error. An empty name in ForceKernel returns to the environment's choice.
Status ActiveKernel(std::string* name);
Status ForceKernel(const std::string& name);

// Which path a layer takes on the active target, for reports: "ternary panel", "ternary in registers", "int8", ...
std::string DescribeConv2D(const ConvShape& shape, const PackedWeights& weights);

}  // namespace keras_lowbit
