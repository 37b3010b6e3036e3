#include "kernels/simd/x86_avxvnni.h"

namespace keras_lowbit {

// 3 x 4 totals, one activation, one weight at a time: 16 registers.
void Int8BlockAvxVnni(const BlockArgs& args) { RunInt8Block<AvxVnni, Int8Source<AvxVnni, 4>, 3>(args); }

}  // namespace keras_lowbit
