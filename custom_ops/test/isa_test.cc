// Choosing an ISA target: by the CPU, by the environment, by force.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "kernels/isa.h"
#include "layers/layers.h"
#include "test/check.h"

int main() {
  using namespace keras_lowbit;
  setenv("KERAS_LOWBIT_KERNEL", "riscv_vector", 1);  // before the first use, which reads it once
  std::string name;
  KLB_CHECK_ERROR(ActiveKernel(&name), "'riscv_vector', which does not exist here; expected one of ");
  KLB_CHECK_ERROR(ActiveKernel(&name), "reference: correct the name");

  const int8_t x = 1;
  int32_t y = 0;
  Epilogue epilogue;
  epilogue.type = OutputType::kInt32;
  KLB_CHECK_ERROR(DepthwiseConv2D(ConvShape(), &x, &x, 0, epilogue, &y, nullptr), "KERAS_LOWBIT_KERNEL");

  const std::vector<std::string> isas = AvailableKernels();
  KLB_CHECK(!isas.empty() && isas.back() == "reference", "the reference runs everywhere");
  for (const std::string& isa : isas) {
    KLB_CHECK_OK(ForceKernel(isa));
    KLB_CHECK_OK(ActiveKernel(&name));
    KLB_CHECK(name == isa, name);
    KLB_CHECK_OK(DepthwiseConv2D(ConvShape(), &x, &x, 0, epilogue, &y, nullptr));
    KLB_CHECK(y == 1, isa);
  }
  KLB_CHECK_ERROR(ForceKernel("x86_mmx"), "x86_mmx");
  KLB_CHECK_OK(ActiveKernel(&name));
  KLB_CHECK(name == isas.back(), "a refused name leaves the choice as it was");

  for (const KernelInfo& info : CompiledKernels()) {
    std::printf("%s: needs %s; %s\n", info.name.c_str(), info.needs.c_str(),
                info.supported ? "runs here" : "SKIPPED: not on this CPU");
    if (!info.supported) KLB_CHECK_ERROR(ForceKernel(info.name), info.needs);
    if (!info.emulates || !info.supported) continue;
    KLB_CHECK(std::find(isas.begin(), isas.end(), info.name) == isas.end(), info.name + " is offered");
    KLB_CHECK_OK(ForceKernel(info.name));
    KLB_CHECK_OK(DepthwiseConv2D(ConvShape(), &x, &x, 0, epilogue, &y, nullptr));
  }
  KLB_CHECK(CompiledKernels().front().supported == (CompiledKernels().front().name == isas.front()), "best first");
  return 0;
}
