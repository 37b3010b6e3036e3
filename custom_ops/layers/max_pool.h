// What a maximum over windows may be asked for.
#pragma once

#include <cstdint>

#include "core/shapes.h"
#include "core/status.h"

namespace keras_lowbit {

// As many output as input channels, no groups or dilations; codes are int8, the lower one of the clamp first.
Status CheckPool(const ConvShape& shape, int32_t padding_code, int32_t clamp_min, int32_t clamp_max);

}  // namespace keras_lowbit
