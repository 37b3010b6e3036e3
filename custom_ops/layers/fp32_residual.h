// The residual ADD in float32, where it gives the same code for every pair of codes.
#pragma once

#include "core/epilogue.h"

namespace keras_lowbit {

// Float32 parameters of an addition behind `own`, whose factors are not read: tried on all pairs of codes, a few
// milliseconds, once for a layer. Not exact where the double rounding or a tie needs integers, and for numbers that
// Conv2D would refuse.
Fp32Residual FindFp32Residual(const Requantize& own, const ResidualAdd& add);

}  // namespace keras_lowbit
