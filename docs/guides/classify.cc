// Classifies one image with a .tflite file of keras_lowbit whose input is uint8 and whose output is float32, on LiteRT's C interface.
//
//   c++ -std=c++17 -I LITERT classify.cc -L LIBRARY -lLiteRt -o classify && ./classify classifier.tflite pixels.bin
//
// pixels.bin: height x width x channels bytes, the size that the model takes.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "litert/c/litert_common.h"
#include "litert/c/litert_compiled_model.h"
#include "litert/c/litert_environment.h"
#include "litert/c/litert_model.h"
#include "litert/c/litert_options.h"
#include "litert/c/litert_tensor_buffer.h"

#define CHECK(call)                                          \
  if (LiteRtStatus status = (call); status != kLiteRtStatusOk) { \
    std::fprintf(stderr, "%s: status %d\n", #call, status);  \
    return 1;                                                \
  }

std::string ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// labels.txt stands uncompressed in a zip file behind the model: one local header, then its bytes.
std::vector<std::string> Labels(const std::string& file) {
  const size_t head = file.rfind("PK\x03\x04");
  if (head == std::string::npos) return {};
  auto number = [&](size_t place, int bytes) {
    size_t value = 0;
    for (int i = bytes; i-- > 0;) value = value << 8 | static_cast<uint8_t>(file[head + place + i]);
    return value;
  };
  const size_t start = head + 30 + number(26, 2) + number(28, 2);
  std::istringstream text(file.substr(start, number(22, 4)));
  std::vector<std::string> labels;
  for (std::string line; std::getline(text, line);) labels.push_back(line);
  return labels;
}

int main(int count, char** arguments) {
  if (count != 3) return 2;
  LiteRtEnvironment environment;
  LiteRtModel model;
  LiteRtOptions options;
  LiteRtCompiledModel compiled;
  CHECK(LiteRtCreateEnvironment(0, nullptr, &environment));
  CHECK(LiteRtCreateModelFromFile(environment, arguments[1], &model));
  CHECK(LiteRtCreateOptions(&options));
  CHECK(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu));
  CHECK(LiteRtCreateCompiledModel(environment, model, options, &compiled));

  // JSON: {"normalization": {"mean": [...], "std": [...]}, ...}. real = (pixel - mean) / std.
  const void* notes;
  size_t notes_bytes;
  CHECK(LiteRtGetModelMetadata(model, "keras_lowbit", &notes, &notes_bytes));
  std::printf("%.*s\n", static_cast<int>(notes_bytes), static_cast<const char*>(notes));

  LiteRtSignature signature;
  LiteRtTensor input, output;
  LiteRtRankedTensorType input_type, output_type;
  LiteRtQuantizationPerTensor grid;
  CHECK(LiteRtGetModelSignature(model, 0, &signature));
  CHECK(LiteRtGetSignatureInputTensorByIndex(signature, 0, &input));
  CHECK(LiteRtGetSignatureOutputTensorByIndex(signature, 0, &output));
  CHECK(LiteRtGetRankedTensorType(input, &input_type));
  CHECK(LiteRtGetRankedTensorType(output, &output_type));
  CHECK(LiteRtGetPerTensorQuantization(input, &grid));
  std::printf("input: real = %g * (code - %lld)\n", grid.scale, static_cast<long long>(grid.zero_point));

  LiteRtTensorBufferRequirements needs;
  LiteRtTensorBuffer inputs[1], outputs[1];
  CHECK(LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, 0, &needs));
  CHECK(LiteRtCreateManagedTensorBufferFromRequirements(environment, &input_type, needs, &inputs[0]));
  CHECK(LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, 0, &needs));
  CHECK(LiteRtCreateManagedTensorBufferFromRequirements(environment, &output_type, needs, &outputs[0]));

  // The codes of the input. They are the pixels themselves where its scale is 1 and its zero point 0; elsewhere
  // code = round(real / scale) + zero_point, held to 0..255.
  const std::string pixels = ReadFile(arguments[2]);
  void* address;
  CHECK(LiteRtLockTensorBuffer(inputs[0], &address, kLiteRtTensorBufferLockModeWrite));
  std::copy(pixels.begin(), pixels.end(), static_cast<char*>(address));
  CHECK(LiteRtUnlockTensorBuffer(inputs[0]));

  CHECK(LiteRtRunCompiledModel(compiled, 0, 1, inputs, 1, outputs));

  const std::vector<std::string> labels = Labels(ReadFile(arguments[1]));
  CHECK(LiteRtLockTensorBuffer(outputs[0], &address, kLiteRtTensorBufferLockModeRead));
  const float* scores = static_cast<const float*>(address);
  const size_t best = std::max_element(scores, scores + labels.size()) - scores;
  std::printf("%s: %.3f\n", labels.at(best).c_str(), scores[best]);
  CHECK(LiteRtUnlockTensorBuffer(outputs[0]));
}
