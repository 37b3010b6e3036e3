// Success, or a message of three parts: what was given, what fits, what to do.
#pragma once

#include <string>
#include <utility>

namespace keras_lowbit {

class Status {
 public:
  Status() = default;
  static Status Error(std::string message) {
    Status status;
    status.message_ = std::move(message);
    return status;
  }
  bool ok() const { return message_.empty(); }
  const std::string& message() const { return message_; }

 private:
  std::string message_;
};

}  // namespace keras_lowbit

// Leaves the calling function with the error, if `expression` gives one.
#define KLB_RETURN_IF_ERROR(expression)            \
  do {                                             \
    ::keras_lowbit::Status status_ = (expression); \
    if (!status_.ok()) return status_;             \
  } while (false)
