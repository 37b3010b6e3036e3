// The smallest test vocabulary that says where it failed: no dependency.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

// Ends the test with the message when `condition` does not hold.
#define KLB_CHECK(condition, message)                                                                        \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, std::string(message).c_str()); \
      std::exit(1);                                                                                          \
    }                                                                                                        \
  } while (false)

#define KLB_CHECK_OK(expression)                         \
  do {                                                   \
    const ::keras_lowbit::Status status_ = (expression); \
    KLB_CHECK(status_.ok(), status_.message());          \
  } while (false)

#define KLB_CHECK_ERROR(expression, words)                                                                 \
  do {                                                                                                     \
    const ::keras_lowbit::Status status_ = (expression);                                                   \
    KLB_CHECK(!status_.ok(), "expected an error with: " + std::string(words));                             \
    KLB_CHECK(status_.message().find(words) != std::string::npos, status_.message() + " lacks: " + words); \
  } while (false)
