// Plain C functions for keras_lowbit/ops/library.py: which ISA targets there are and which one runs. Texts live until
// the same thread calls the same function again.
#include <string>

#include "core/export.h"
#include "kernels/isa.h"

// One line for each compiled ISA target, best first: name, tab, CPU features it needs, tab, 1 if this CPU has them.
KLB_EXPORT const char* KerasLowbitCompiledKernels() {
  thread_local std::string text;
  text.clear();
  for (const auto& isa : keras_lowbit::CompiledKernels()) {
    text += isa.name + "\t" + isa.needs + "\t" + (isa.supported ? "1" : "0") + "\n";
  }
  return text.c_str();
}

// The ISA target in use, tab, nothing; or nothing, tab, the error.
KLB_EXPORT const char* KerasLowbitActiveKernel() {
  thread_local std::string text;
  std::string name;
  const keras_lowbit::Status status = keras_lowbit::ActiveKernel(&name);
  text = status.ok() ? name + "\t" : "\t" + status.message();
  return text.c_str();
}

// Empty, or the error.
KLB_EXPORT const char* KerasLowbitForceKernel(const char* name) {
  thread_local std::string text;
  text = keras_lowbit::ForceKernel(name).message();
  return text.c_str();
}
