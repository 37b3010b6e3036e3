// Nothing that is thrown leaves an op, wherever TensorFlow calls it: made, shaped or run. TensorFlow's frames catch
// nothing, so the process would end.
#pragma once

#include <new>
#include <stdexcept>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_lowbit {

// Made when the library is loaded: there may be no memory for them when they are wanted.
inline const auto* const kNoMemory =
    new absl::Status(absl::ResourceExhaustedError("no memory for a compiled op: use smaller batches or images"));
inline const auto* const kUnexpected = new absl::Status(absl::InternalError("an exception inside a compiled op"));

inline absl::Status NoMemory(const char* what) noexcept {
  try {
    return absl::ResourceExhaustedError(absl::StrCat(kNoMemory->message(), " (", what, ")"));
  } catch (...) {
    return *kNoMemory;
  }
}

// The status that `body` returns, or one for what it throws. A length beyond what a container can have is a lack of
// memory too.
template <class Body>
absl::Status Guarded(const Body& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc& error) {
    return NoMemory(error.what());
  } catch (const std::length_error& error) {
    return NoMemory(error.what());
  } catch (...) {
    return *kUnexpected;
  }
}

// An op whose work is Work's: `Init` when it is made, `Run` at each call. Both return a status.
template <class Work>
class GuardedOp : public tensorflow::OpKernel {
 public:
  explicit GuardedOp(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    const absl::Status status = Guarded([&] { return work_.Init(context); });
    if (!status.ok()) context->SetStatus(status);
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    const absl::Status status = Guarded([&] { return work_.Run(context); });
    if (!status.ok()) context->SetStatus(status);
  }

  static tensorflow::OpKernel* Make(tensorflow::OpKernelConstruction* context) {
    tensorflow::OpKernel* made = nullptr;
    const absl::Status status = Guarded([&] {
      made = new GuardedOp(context);
      return absl::OkStatus();
    });
    if (!status.ok()) context->SetStatus(status);
    return made;
  }

 private:
  Work work_;
};

// Registers KerasLowbit>name on a device, its work that of class nameOp<Device>. REGISTER_KERNEL_BUILDER would call `new`
// unguarded.
#define KLB_REGISTER(name, device_type, Where)                                                         \
  [[maybe_unused]] static const tensorflow::kernel_factory::OpKernelRegistrar registered##name(        \
      tensorflow::register_kernel::Name("KerasLowbit>" #name).Device(device_type).Build(), #name "Op", \
      GuardedOp<name##Op<Where>>::Make)

// A shape function that TensorFlow may call.
template <absl::Status (*kShapes)(tensorflow::shape_inference::InferenceContext*)>
absl::Status GuardedShapes(tensorflow::shape_inference::InferenceContext* context) {
  return Guarded([&] { return kShapes(context); });
}

}  // namespace keras_lowbit
