// Ceilings of a CUDA device.
#pragma once

namespace keras_lowbit::bench {

// 10**9 int8 products a second of mma.sync.m16n8k32, or of dp4a on a device that has no such tensor cores.
double CudaPeakGmacs(int processors, bool has_tensor_cores);

// GB a second that are read from 2 GB of memory.
double CudaReadGigabytes(int processors);

// The clock of the multiprocessors while they work, in MHz.
double CudaClockMhz(int processors);

}  // namespace keras_lowbit::bench
