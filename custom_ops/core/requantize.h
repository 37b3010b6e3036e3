// LiteRT's fixed-point arithmetic, one number at a time: the definition every vector epilogue must equal.
// The same functions in NumPy: keras_lowbit/numerics/requantization.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace keras_lowbit {

// LiteRT raises the operands of an ADD by so many bits before it brings them to a common grid.
constexpr int kAddShift = 20;

// int32 arithmetic modulo 2**32, as the reference's wrapped sums; signed overflow would be undefined.
KLB_HOST_DEVICE inline int32_t WrapAdd(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
KLB_HOST_DEVICE inline int32_t WrapSub(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b));
}
KLB_HOST_DEVICE inline int32_t WrapMul(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}
KLB_HOST_DEVICE inline int32_t WrapShiftLeft(int32_t x, int bits) {
  return static_cast<int32_t>(static_cast<uint32_t>(x) << bits);
}

// round_half_up(a * b / 2**31); only min * min saturates.
KLB_HOST_DEVICE inline int32_t RoundingDoublingHighMul(int32_t a, int32_t b) {
  const int64_t high = (int64_t{a} * b + (int64_t{1} << 30)) >> 31;
  return static_cast<int32_t>(std::min<int64_t>(high, INT32_MAX));
}

// round_half_away(x / 2**exponent), 0 <= exponent <= 31.
KLB_HOST_DEVICE inline int32_t RoundingDivideByPowerOfTwo(int32_t x, int exponent) {
  const int32_t mask = static_cast<int32_t>((int64_t{1} << exponent) - 1);
  const int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
  return (x >> exponent) + ((x & mask) > threshold ? 1 : 0);
}

// x * multiplier * 2**(shift - 31), rounded twice.
KLB_HOST_DEVICE inline int32_t MultiplyByQuantizedMultiplier(int32_t x, int32_t multiplier, int shift) {
  const int32_t high = RoundingDoublingHighMul(WrapShiftLeft(x, std::max(shift, 0)), multiplier);
  return RoundingDivideByPowerOfTwo(high, std::max(-shift, 0));
}

// A code as an operand of LiteRT's ADD, on the common grid.
KLB_HOST_DEVICE inline int32_t ToAddGrid(int32_t code, int32_t zero_point, int32_t multiplier, int shift) {
  return MultiplyByQuantizedMultiplier((code - zero_point) * (1 << kAddShift), multiplier, shift);
}

// A whole number in double; what does not fit int32 becomes its minimum, as x86 converts it.
KLB_HOST_DEVICE inline int32_t ToInt32(double whole) {
  return std::fabs(whole) < 2147483648.0 ? static_cast<int32_t>(whole) : INT32_MIN;
}

// round_half_away(x * factor) in double.
KLB_HOST_DEVICE inline int32_t MultiplyByDouble(int32_t x, double factor) { return ToInt32(std::round(x * factor)); }

// clip(wrap(scaled + zero_point), low, high) as an int8 code.
KLB_HOST_DEVICE inline int8_t ToCode(int32_t scaled, int32_t zero_point, int32_t low, int32_t high) {
  return static_cast<int8_t>(std::min(std::max(WrapAdd(scaled, zero_point), low), high));
}

}  // namespace keras_lowbit
