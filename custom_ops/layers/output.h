// From an Epilogue to the OutputStage that kernels read.
#pragma once

#include <cstdint>

#include "core/api.h"
#include "kernels/output_stage.h"
#include "layers/constants.h"

namespace keras_lowbit {

// Pointers are there, zero points and clamps are int8 codes, low <= high. Shifts are checked with the constants.
Status CheckEpilogue(const Epilogue& epilogue);

OutputStage MakeOutputStage(const Epilogue& epilogue, const Constants& constants, int64_t out_channels, void* output);

}  // namespace keras_lowbit
