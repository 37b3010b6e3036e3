// One call that XLA makes: its arguments by number, its attributes by name (keras_lowbit/ops/jax_functions.py gives them),
// and what becomes of errors.
#pragma once

#include <cstdint>
#include <new>
#include <string>

#include "core/export.h"
#include "core/status.h"
#include "xla/ffi/api/ffi.h"

namespace keras_lowbit::xla_calls {

namespace ffi = ::xla::ffi;

// An argument's values; null where it is empty.
template <class T>
struct Array {
  const T* data = nullptr;
  int64_t size = 0;
};

// Reads until something is missing or of another type, and remembers that.
class Call {
 public:
  Call(const ffi::RemainingArgs& arguments, const ffi::Dictionary& attributes)
      : arguments_(arguments), attributes_(attributes) {}

  int64_t Number(const char* name) { return Attribute<int64_t>(name, 1); }
  int32_t Number32(const char* name) { return static_cast<int32_t>(Number(name)); }
  float Real(const char* name) { return Attribute<float>(name, 1); }

  template <ffi::DataType kType>
  Array<ffi::NativeType<kType>> Values(size_t index) {
    const auto found = arguments_.get<ffi::Buffer<kType>>(index);
    if (!found.has_value()) return Missing(index), Array<ffi::NativeType<kType>>();
    const auto size = static_cast<int64_t>(found->element_count());
    return {size == 0 ? nullptr : found->typed_data(), size};
  }

  // Sizes of an argument of rank 4.
  const int64_t* Sizes(size_t index) {
    static constexpr int64_t kOnes[4] = {1, 1, 1, 1};
    const auto found = arguments_.get<ffi::AnyBuffer>(index);
    if (found.has_value() && found->dimensions().size() == 4) return found->dimensions().begin();
    Missing(index);
    return kOnes;
  }

  const Status& missing() const { return missing_; }

 private:
  template <class T>
  T Attribute(const char* name, T otherwise) {
    const auto value = attributes_.get<T>(name);
    if (value.has_value()) return *value;
    missing_ = Status::Error(std::string("an XLA call of a layer came without the attribute ") + name);
    return otherwise;
  }
  void Missing(size_t index) {
    missing_ = Status::Error("argument " + std::to_string(index) + " of an XLA call has another type or rank");
  }

  const ffi::RemainingArgs& arguments_;
  const ffi::Dictionary& attributes_;
  Status missing_;
};

// As many values as output channels, or none.
template <class T>
Status PerChannel(const char* name, const Array<T>& values, int64_t channels) {
  if (values.size == 0 || values.size == channels) return Status();
  return Status::Error(std::string("an XLA call of a layer has ") + std::to_string(values.size) + " values of " + name +
                       " for its " + std::to_string(channels) + " output channels; expected one for each, or none");
}

inline Status CheckSize(const ffi::AnyBuffer& output, int64_t wanted) {
  const int64_t size = static_cast<int64_t>(output.element_count());
  if (size == wanted) return Status();
  return Status::Error("the output of an XLA call has " + std::to_string(size) + " elements; expected " +
                       std::to_string(wanted));
}

inline ffi::Error ToError(const Status& status) {
  return status.ok() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kInvalidArgument, status.message());
}

// What `body` returns, or an error for what it throws: XLA catches nothing.
template <class Body>
ffi::Error Guarded(const Body& body) noexcept {
  try {
    return ToError(body());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a compiled layer: use smaller batches");
  } catch (...) {
    return ffi::Error(ffi::ErrorCode::kInternal, "an exception inside a compiled layer");
  }
}

}  // namespace keras_lowbit::xla_calls

// Defines the handler that XLA calls `symbol`, of a function that takes what `context` binds, arguments, output and
// attributes.
#define KLB_XLA_CALL(symbol, function, context)                 \
  KLB_EXPORT XLA_FFI_Error* symbol(XLA_FFI_CallFrame* call);    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function, (context).RemainingArgs().Ret<::xla::ffi::AnyBuffer>().Attrs())
