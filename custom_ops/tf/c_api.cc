// Plain C functions for keras_lowbit/ops/library.py: which ISA targets there are and which one runs. Texts live until
// the same thread calls one of these functions again. Nothing is thrown: the caller is C.
#include <string>

#include "core/export.h"
#include "core/per_thread.h"
#include "kernels/isa.h"

namespace keras_lowbit {
namespace {

// The text that `write` returns, or `otherwise` where there is no memory for it.
template <class Write>
const char* Text(const Write& write, const char* otherwise) noexcept {
  try {
    static const PerThread<std::string> texts;
    std::string& text = texts.Get();
    text = write();
    return text.c_str();
  } catch (...) {
    return otherwise;
  }
}

std::string AllKernels() {
  std::string text;
  for (const KernelInfo& isa : CompiledKernels()) {
    if (isa.emulates) continue;
    text += isa.name + "\t" + isa.needs + "\t" + (isa.supported ? "1" : "0") + "\n";
  }
  return text;
}

std::string ActiveOrError() {
  std::string name;
  const Status status = ActiveKernel(&name);
  return status.ok() ? name + "\t" : "\t" + status.message();
}

}  // namespace
}  // namespace keras_lowbit

// One line for each compiled ISA target that is no emulation, best first: name, tab, CPU features it needs, tab, 1 if
// this CPU has them.
KLB_EXPORT const char* KerasLowbitCompiledKernels() { return keras_lowbit::Text(keras_lowbit::AllKernels, ""); }

// The ISA target in use, tab, nothing; or nothing, tab, the error.
KLB_EXPORT const char* KerasLowbitActiveKernel() {
  return keras_lowbit::Text(keras_lowbit::ActiveOrError, "\tno memory for the name of the kernel");
}

// Empty, or the error.
KLB_EXPORT const char* KerasLowbitForceKernel(const char* name) {
  return keras_lowbit::Text([&] { return keras_lowbit::ForceKernel(name).message(); },
                            "no memory for the name of the kernel");
}
