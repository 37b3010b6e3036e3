// A layer's work on TensorFlow's own threads.
#pragma once

#include "layers/shared_work.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace keras_lowbit {

inline ParallelFor Threads(tensorflow::OpKernelContext* context) {
  auto* pool = context->device()->tensorflow_cpu_worker_threads()->workers;
  if (pool->NumThreads() <= 1) return nullptr;
  return [pool](int64_t count, int64_t cost, const Work& work) { RunOn(pool, count, cost, work); };
}

}  // namespace keras_lowbit
