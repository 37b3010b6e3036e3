// Ceilings of a CUDA device.
#pragma once

namespace keras_lowbit::bench {

// 10**9 int8 products of mma.sync.m16n8k32 a second; a device before sm_80 has none, and the number means nothing.
double CudaPeakGmacs(int processors);

// GB a second that are read from 2 GB of memory.
double CudaReadGigabytes(int processors);

// The clock of the multiprocessors while they work, in MHz.
double CudaClockMhz(int processors);

}  // namespace keras_lowbit::bench
