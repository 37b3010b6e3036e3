// What this device can do at most: int8 products of mma.sync or dp4a a second, bytes read from memory a second.
#include "bench/cuda_machine.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/device_array.h"

namespace keras_lowbit::bench {
namespace {

constexpr int kPeakThreads = 256, kPeakRounds = 4096;
constexpr int kPeakSums = 8;  // independent products of a warp, to hide the latency of each; four sums a thread

// Products of one warp in a round: of mma.sync.m16n8k32, or of a dp4a for each sum of each thread.
double WarpProducts(bool has_tensor_cores) { return kPeakSums * (has_tensor_cores ? 16.0 * 8 * 32 : 4.0 * 32 * 4); }

__global__ void PeakKernel(int32_t* keep) {
  int32_t sums[kPeakSums][4] = {};
  uint32_t a = threadIdx.x * 0x01030507u, b = threadIdx.x * 0x07050301u;
  for (int round = 0; round < kPeakRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kPeakSums; ++i) {
#if __CUDA_ARCH__ >= 800
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, {%0, %1, %2, "
          "%3};"
          : "+r"(sums[i][0]), "+r"(sums[i][1]), "+r"(sums[i][2]), "+r"(sums[i][3])
          : "r"(a), "r"(b));
#else
      for (int32_t& sum : sums[i]) asm volatile("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
#endif
    }
  }
  int32_t total = 0;
  for (auto& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  if (total == 0x7FFFFFFF) keep[threadIdx.x] = total;
}

__global__ void ReadKernel(const uint4* words, int64_t count, uint32_t* keep) {
  uint32_t sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 word = words[i];
    sum += word.x ^ word.y ^ word.z ^ word.w;
  }
  if (sum == 0xFFFFFFFFu) *keep = sum;
}

// What one multiprocessor's clock counts in `nanoseconds` of the device's timer, while all are busy.
__global__ void ClockKernel(uint64_t nanoseconds, double* megahertz) {
  uint64_t first, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(first));
  const int64_t begin = clock64();
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - first < nanoseconds);
  if (blockIdx.x == 0 && threadIdx.x == 0) *megahertz = (clock64() - begin) * 1e3 / static_cast<double>(now - first);
}

// Seconds of the best of nine runs.
template <class Launch>
double Best(const Launch& launch) {
  cudaEvent_t begin, end;
  KLB_CUDA(cudaEventCreate(&begin));
  KLB_CUDA(cudaEventCreate(&end));
  double best = 1e30;
  for (int i = 0; i < 10; ++i) {
    KLB_CUDA(cudaEventRecord(begin));
    launch();
    KLB_CUDA(cudaEventRecord(end));
    KLB_CUDA(cudaEventSynchronize(end));
    KLB_CUDA(cudaGetLastError());
    float milliseconds = 0;
    KLB_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i > 0) best = std::min(best, milliseconds / 1e3);
  }
  KLB_CUDA(cudaEventDestroy(begin));
  KLB_CUDA(cudaEventDestroy(end));
  return best;
}

}  // namespace

double CudaPeakGmacs(int processors, bool has_tensor_cores) {
  const cuda::DeviceArray<int32_t> keep(kPeakThreads);
  const int blocks = 8 * processors;
  const double seconds = Best([&] { PeakKernel<<<blocks, kPeakThreads>>>(keep.data()); });
  return WarpProducts(has_tensor_cores) * kPeakRounds * (kPeakThreads / 32) * blocks / seconds / 1e9;
}

double CudaClockMhz(int processors) {
  const cuda::DeviceArray<double> megahertz(1);
  ClockKernel<<<processors, kPeakThreads>>>(20000000, megahertz.data());
  KLB_CUDA(cudaGetLastError());
  return megahertz.Get()[0];
}

double CudaReadGigabytes(int processors) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  const cuda::DeviceArray<uint8_t> memory(kBytes);
  const cuda::DeviceArray<uint32_t> keep(1);
  KLB_CUDA(cudaMemset(memory.data(), 1, kBytes));
  const double seconds = Best([&] {
    ReadKernel<<<16 * processors, 256>>>(reinterpret_cast<const uint4*>(memory.data()), kBytes / 16, keep.data());
  });
  return kBytes / seconds / 1e9;
}

}  // namespace keras_lowbit::bench
