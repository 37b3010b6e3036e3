// Functions that run on the CPU and, where a CUDA compiler reads them, on the GPU too.
#pragma once

#if defined(__CUDACC__)
#define KLB_HOST_DEVICE __host__ __device__
#else
#define KLB_HOST_DEVICE
#endif
