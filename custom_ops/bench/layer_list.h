// The layers that benchmarks measure and tests of the CUDA kernels walk: those of two networks at 224 x 224, and large
// dense layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/shapes.h"

namespace keras_lowbit::bench {

struct Case {
  std::string name;
  ConvShape shape;
};

inline Case Conv(int64_t size, int64_t in, int64_t out, int64_t kernel, int64_t stride) {
  Case c;
  c.shape.in_height = c.shape.in_width = size;
  c.shape.in_channels = in;
  c.shape.out_channels = out;
  c.shape.kernel_height = c.shape.kernel_width = kernel;
  c.shape.stride_height = c.shape.stride_width = stride;
  SetSamePadding(&c.shape);
  c.name = std::to_string(kernel) + "x" + std::to_string(kernel) + "/" + std::to_string(stride) + " " +
           std::to_string(size) + "x" + std::to_string(size) + " " + std::to_string(in) + "->" + std::to_string(out);
  return c;
}

// The distinct convolutions of Keras' ResNet50.
inline std::vector<Case> ResNet50() {
  std::vector<Case> cases = {Conv(224, 3, 64, 7, 2), Conv(56, 64, 64, 1, 1), Conv(56, 64, 256, 1, 1),
                             Conv(56, 64, 64, 3, 1), Conv(56, 256, 64, 1, 1)};
  for (int64_t out = 128, size = 56; out <= 512; out *= 2, size /= 2) {
    cases.push_back(Conv(size, 2 * out, out, 1, 2));
    cases.push_back(Conv(size, 2 * out, 4 * out, 1, 2));
    cases.push_back(Conv(size / 2, out, out, 3, 1));
    cases.push_back(Conv(size / 2, out, 4 * out, 1, 1));
    cases.push_back(Conv(size / 2, 4 * out, out, 1, 1));
  }
  return cases;
}

// The distinct 1x1 convolutions of MobileNetV2: narrow and shallow.
inline std::vector<Case> MobileNetV2() {
  const int64_t layers[][3] = {{112, 32, 16}, {112, 16, 96}, {56, 96, 24},  {56, 24, 144}, {56, 144, 24},
                               {28, 144, 32}, {28, 32, 192}, {28, 192, 32}, {14, 192, 64}, {14, 64, 384},
                               {14, 384, 64}, {14, 384, 96}, {14, 96, 576}, {14, 576, 96}, {7, 576, 160},
                               {7, 160, 960}, {7, 960, 160}, {7, 960, 320}, {7, 320, 1280}};
  std::vector<Case> cases;
  for (const auto& layer : layers) cases.push_back(Conv(layer[0], layer[1], layer[2], 1, 1));
  return cases;
}

inline Case DenseCase(int64_t in, int64_t out) {
  return {"dense " + std::to_string(in) + "->" + std::to_string(out), AsConv({1, in, out})};
}

inline std::vector<Case> LargeDense() { return {DenseCase(4096, 4096), DenseCase(9216, 4096), DenseCase(25088, 4096)}; }

}  // namespace keras_lowbit::bench
