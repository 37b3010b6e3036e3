#include "kernels/isa.h"

#include <cstdlib>
#include <mutex>

#include "core/cpu_features.h"

namespace keras_lowbit {
namespace {

struct IsaInfo {
  Isa isa;
  const char* name;
  bool (*supported)();
  const char* needs;
};

const IsaInfo kIsas[] = {
#define KLB_ISA(name, supported, needs) {Isa::name, #name, [] { return bool(supported); }, needs},
#include "kernels/isa.inc"
#undef KLB_ISA
};

// What was asked for, by ForceKernel or the environment. Empty: the best.
struct Choice {
  std::mutex mutex;
  std::string forced, environment;
  Choice() {
    const char* value = std::getenv("KERAS_LOWBIT_KERNEL");
    environment = value == nullptr ? "" : value;
  }
};

Choice& TheChoice() {
  static Choice* choice = new Choice;  // never destroyed: threads may outlive static objects
  return *choice;
}

std::string Listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

Status Find(const std::string& name, const char* asked_by, const IsaInfo** found) {
  for (const IsaInfo& info : kIsas) {
    if (name.empty() ? info.supported() : name == info.name) {
      *found = &info;
      if (info.supported()) return Status();
      return Status::Error(std::string(asked_by) + " asks for kernel '" + name + "', which needs " + info.needs +
                           "; this CPU runs " + Listed(AvailableKernels()) + ": choose one of these");
    }
  }
  return Status::Error(std::string(asked_by) + " asks for kernel '" + name +
                       "', which does not exist here; expected one of " + Listed(AvailableKernels()) +
                       ": correct the name or leave it empty");
}

Status FindActive(const IsaInfo** info) {
  Choice& choice = TheChoice();
  std::lock_guard<std::mutex> lock(choice.mutex);
  const bool forced = !choice.forced.empty();
  return Find(forced ? choice.forced : choice.environment, forced ? "ForceKernel" : "KERAS_LOWBIT_KERNEL", info);
}

}  // namespace

Status ActiveIsa(Isa* isa) {
  const IsaInfo* info = nullptr;
  KLB_RETURN_IF_ERROR(FindActive(&info));
  *isa = info->isa;
  return Status();
}

Status ActiveKernel(std::string* name) {
  const IsaInfo* info = nullptr;
  KLB_RETURN_IF_ERROR(FindActive(&info));
  *name = info->name;
  return Status();
}

Status ForceKernel(const std::string& name) {
  const IsaInfo* info = nullptr;
  KLB_RETURN_IF_ERROR(Find(name, "ForceKernel", &info));
  Choice& choice = TheChoice();
  std::lock_guard<std::mutex> lock(choice.mutex);
  choice.forced = name;
  return Status();
}

std::vector<std::string> AvailableKernels() {
  std::vector<std::string> names;
  for (const IsaInfo& info : kIsas) {
    if (info.supported() && info.isa <= Isa::reference) names.push_back(info.name);
  }
  return names;
}

std::vector<KernelInfo> CompiledKernels() {
  std::vector<KernelInfo> infos;
  for (const IsaInfo& info : kIsas) {
    infos.push_back({info.name, info.needs, info.supported(), info.isa > Isa::reference});
  }
  return infos;
}

}  // namespace keras_lowbit
