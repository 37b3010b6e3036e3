// Random layers with ugly fills: of every ISA target's test, and of the CUDA kernels'.
#pragma once

#include <cstdlib>

#include "test/cases.h"

namespace keras_lowbit::test {

inline int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

inline ConvShape DrawShape(Random& random) {
  ConvShape s;
  s.batch = Between(random, 1, 2);
  s.in_height = Between(random, 1, 7);
  s.in_width = Between(random, 1, 9);
  s.kernel_height = Between(random, 1, 3);
  s.kernel_width = Between(random, 1, 4);
  s.stride_height = Between(random, 1, 3);
  s.stride_width = Between(random, 1, 3);
  s.dilation_height = Between(random, 1, 2);
  s.dilation_width = Between(random, 1, 2);
  s.pad_top = Between(random, 0, 3);
  s.pad_bottom = Between(random, 0, 3);
  s.pad_left = Between(random, 0, 3);
  s.pad_right = Between(random, 0, 3);
  const int64_t inputs[] = {Between(random, 1, 8), Between(random, 9, 40), 4 * Between(random, 1, 20),
                            Between(random, 60, 300)};
  const int64_t outputs[] = {Between(random, 1, 20), Between(random, 1, 70), 16 * Between(random, 1, 5),
                             Between(random, 60, 140)};
  s.in_channels = inputs[random() % 4];
  s.out_channels = outputs[random() % 4];
  return s;
}

inline void DrawKind(Random& random, Layer* l) {
  ConvShape& s = l->shape;
  l->kind = static_cast<Kind>(random() % 5 >= 3 ? 1 + random() % 2 : 0);
  if (l->kind == Kind::kDepthwise) {
    s.out_channels = s.in_channels * (random() % 4 == 0 ? Between(random, 2, 3) : 1);
    return;
  }
  if (random() % 6 == 0) {
    s.groups = Between(random, 2, 4);
    s.in_channels = s.groups * Between(random, 1, 20);
    s.out_channels = s.groups * Between(random, 1, 20);
  }
  if (l->kind != Kind::kTernary) return;
  const int64_t sizes[] = {0, 4, 64, Between(random, 1, 12), Between(random, 1, s.in_channels)};
  l->cluster_size = sizes[random() % 5];
  l->has_scales = random() % 3 != 0;
  l->scales_per_tap = l->has_scales && random() % 3 == 0;
}

inline Layer DrawLayer(Random& random) {
  Layer l;
  l.shape = DrawShape(random);
  DrawKind(random, &l);
  if (random() % 3 != 0) l.fill_x = kFills[random() % 6], l.fill_w = kFills[random() % 6];
  l.zero_point = random() % 3 == 0 ? -128 : static_cast<int32_t>(Between(random, -128, 127));
  l.type = random() % 2 ? OutputType::kInt8 : static_cast<OutputType>(random() % 3);
  l.in_double = random() % 4 == 0;
  l.has_bias = random() % 4 != 0;
  l.odd_factors = random() % 8 == 0;
  l.large_factors = !l.odd_factors && random() % 2;
  l.has_residual = l.type == OutputType::kInt8 && random() % 2;
  return l;
}

}  // namespace keras_lowbit::test
