// Functions of the op library that Python calls by name.
#pragma once

#define KLB_EXPORT extern "C" __attribute__((visibility("default")))
