// From an Epilogue to the PreparedEpilogue that kernels read.
#pragma once

#include <cstdint>

#include "core/epilogue.h"
#include "core/status.h"
#include "kernels/prepared_epilogue.h"
#include "layers/constants.h"

namespace keras_lowbit {

// Pointers are there, zero points and clamps are int8 codes, low <= high. Shifts are checked with the constants.
Status CheckEpilogue(const Epilogue& epilogue);

PreparedEpilogue PrepareEpilogue(const Epilogue& epilogue, const Constants& constants, int64_t out_channels,
                                 void* output);

}  // namespace keras_lowbit
