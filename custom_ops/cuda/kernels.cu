// The GPU's Block, the kernels and their launchers.
#include "cuda/launch.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>

#include "cuda/conv_body.h"
#include "cuda/dots.h"
#include "cuda/each.h"
#include "cuda/row_body.h"
#include "layers/max_pool.h"

namespace keras_lowbit::cuda {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// sm_80 and later: mma.sync.m16n8k32 and cp.async.
__device__ __forceinline__ void MultiplyFragments(const uint32_t a[4], const uint32_t b[2], int32_t c[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rows of four matrices from shared memory, one a lane; see ImageMatrixVector.
__device__ __forceinline__ void LoadFourMatrices(const void* row, uint32_t a[4]) {
  const auto place = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(place)
               : "memory");
}

__device__ __forceinline__ void CopyToShared(void* to, const void* from) {
  const auto place = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
#else
// Older GPUs: products of four bytes, and copies that are done at once.
struct Shuffled {
  const uint32_t* a;
  const uint32_t* b;
  __device__ __forceinline__ uint32_t A(int lane, int i) const { return __shfl_sync(0xFFFFFFFFu, a[i], lane); }
  __device__ __forceinline__ uint32_t B(int lane, int i) const { return __shfl_sync(0xFFFFFFFFu, b[i], lane); }
};
__device__ __forceinline__ void MultiplyFragments(const uint32_t a[4], const uint32_t b[2], int32_t c[4]) {
  MultiplyByDots(static_cast<int>(threadIdx.x) % kLanes, Shuffled{a, b}, c);
}
__device__ __forceinline__ void CopyToShared(void* to, const void* from) {
  *static_cast<Vector*>(to) = *static_cast<const Vector*>(from);
}
__device__ __forceinline__ void LoadFourMatrices(const void*, uint32_t*) {}
__device__ __forceinline__ void CommitCopies() {}
template <int kGroups>
__device__ __forceinline__ void WaitForCopies() {}
#endif

// Whether activations come from shared memory by ldmatrix, a fifth of the loads: chosen when compiling (KLB_LDMATRIX), until a
// card has said which is faster.
#if defined(KLB_LDMATRIX)
constexpr bool kLdmatrix = true;
#else
constexpr bool kLdmatrix = false;
#endif
__device__ __forceinline__ constexpr bool HasLdmatrix() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return kLdmatrix;
#else
  return false;
#endif
}

// One thread of the block that a body asks for.
template <class Registers>
struct GpuBlock {
  void* memory;
  Registers registers;

  __device__ __forceinline__ int x() const { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ int y() const { return static_cast<int>(blockIdx.y); }
  __device__ __forceinline__ int z() const { return static_cast<int>(blockIdx.z); }
  __device__ __forceinline__ void* shared() { return memory; }
  template <class Step>
  __device__ __forceinline__ void ForThreads(const Step& step) {
    step(static_cast<int>(threadIdx.x), registers);
  }
  __device__ __forceinline__ void Sync() { __syncthreads(); }
  __device__ __forceinline__ void Multiply(int tile, int field) {
    MultiplyFragments(registers.a[tile], registers.b[field], registers.totals[tile][field]);
  }
  __device__ __forceinline__ static constexpr bool LoadsMatrices() { return HasLdmatrix(); }
  template <class Row>
  __device__ __forceinline__ void LoadMatrices(int tile, const Row& row) {
    LoadFourMatrices(row(static_cast<int>(threadIdx.x)), registers.a[tile]);
  }
  __device__ __forceinline__ void CopyVector(void* to, const void* from) { CopyToShared(to, from); }
  __device__ __forceinline__ void Commit() { CommitCopies(); }
  template <int kGroups>
  __device__ __forceinline__ void WaitForAllBut() {
    WaitForCopies<kGroups>();
  }
};

// Blocks that a processor is to hold. Left alone, sm_89 takes registers for two of the large tile.
template <WeightKind kKind, int kRowTiles>
__host__ __device__ constexpr int LeastBlocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return kRowTiles == 4 ? 3 : kKind == WeightKind::kTernary ? 7 : 5;
#else
  return kRowTiles == 4 ? 2 : 4;
#endif
}

template <WeightKind kKind, int kRowTiles>
__global__ void __launch_bounds__(kThreads, LeastBlocks<kKind, kRowTiles>()) ConvKernel(const ConvArgs a) {
  __shared__ Vector shared[ConvTile<kKind, kRowTiles>::kSharedWords / kVectorWords];
  GpuBlock<ConvRegisters<kRowTiles>> block;
  block.memory = shared;
  ConvBody<kKind, kRowTiles>(block, a);
}

template <WeightKind kKind>
__global__ void __launch_bounds__(kThreads) RowKernel(const ConvArgs a) {
  __shared__ Vector shared[RowTile<kKind>::kSharedWords / kVectorWords];
  GpuBlock<RowRegisters<kKind>> block;
  block.memory = shared;
  RowBody<kKind>(block, a);
}

constexpr int kEachThreads = 256;
constexpr int64_t kMostEachBlocks = 1 << 20;

template <class Each>
__global__ void __launch_bounds__(kEachThreads) EachKernel(const Each each) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kEachThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kEachThreads + threadIdx.x; i < each.count(); i += step) each(i);
}

Status ToStatus(cudaError_t error) {
  if (error == cudaSuccess) return Status();
  return Status::Error(std::string("CUDA says ") + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

// Of the launch itself; what an earlier one left behind is taken away before.
template <class Launch>
Status Launched(const Launch& launch) {
  cudaGetLastError();
  launch();
  return ToStatus(cudaGetLastError());
}

template <class Each>
Status LaunchEach(const Each& each, Stream stream) {
  const int64_t blocks = std::min((each.count() + kEachThreads - 1) / kEachThreads, kMostEachBlocks);
  if (blocks == 0) return Status();
  return Launched(
      [&] { EachKernel<<<static_cast<unsigned>(blocks), kEachThreads, 0, static_cast<cudaStream_t>(stream)>>>(each); });
}

template <WeightKind kKind>
Status LaunchKind(const ConvPlan& plan, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(plan.grid[0]), static_cast<unsigned>(plan.grid[1]),
                  static_cast<unsigned>(plan.grid[2]));
  return Launched([&] {
    if (plan.path == ConvPath::kRow) RowKernel<kKind><<<grid, kThreads, 0, stream>>>(plan.args);
    if (plan.path == ConvPath::kTile32) ConvKernel<kKind, 1><<<grid, kThreads, 0, stream>>>(plan.args);
    if (plan.path == ConvPath::kTile128) ConvKernel<kKind, 4><<<grid, kThreads, 0, stream>>>(plan.args);
  });
}

Status LaunchConv(const ConvPlan& plan, Stream stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (plan.kind == WeightKind::kInt8) return LaunchKind<WeightKind::kInt8>(plan, on);
  if (plan.kind == WeightKind::kTernary) return LaunchKind<WeightKind::kTernary>(plan, on);
  return LaunchKind<WeightKind::kTernaryScaled>(plan, on);
}

Status PlanOnDevice(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call, ConvPlan* plan) {
  Device device;
  KLB_RETURN_IF_ERROR(CurrentDevice(&device));
  return PlanConv(shape, weights, call, device.processors, plan);
}

Status AskDevice(int number, Device* device) {
  cudaDeviceProp found;
  KLB_RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&found, number)));
  device->name = found.name;
  device->major = found.major, device->minor = found.minor, device->processors = found.multiProcessorCount;
  device->has_tensor_cores = found.major >= 8;
  device->product = !device->has_tensor_cores ? "dp4a" : kLdmatrix ? "mma.sync.m16n8k32, ldmatrix" : "mma.sync.m16n8k32";
  KLB_RETURN_IF_ERROR(ToStatus(cudaDriverGetVersion(&device->driver)));
  return ToStatus(cudaRuntimeGetVersion(&device->runtime));
}

constexpr int kMostDevices = 64;
struct KnownDevices {
  std::mutex mutex;
  Device devices[kMostDevices];
};

}  // namespace

Status CurrentDevice(Device* device) {
  static auto* const known = new KnownDevices;
  int number = 0;
  KLB_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&number)));
  if (number >= kMostDevices) return AskDevice(number, device);
  const std::lock_guard<std::mutex> lock(known->mutex);
  Device& kept = known->devices[number];
  if (kept.processors == 0) KLB_RETURN_IF_ERROR(AskDevice(number, &kept));
  *device = kept;
  return Status();
}

Status WorkspaceBytes(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call, int64_t* bytes) {
  ConvPlan plan;
  KLB_RETURN_IF_ERROR(PlanOnDevice(shape, weights, call, &plan));
  *bytes = plan.workspace_bytes;
  return Status();
}

Status Conv2D(const ConvShape& shape, const PackedWeights& weights, const ConvCall& call, void* workspace,
              Stream stream) {
  ConvPlan plan;
  KLB_RETURN_IF_ERROR(PlanOnDevice(shape, weights, call, &plan));
  if (shape.out_pixels() == 0) return Status();
  plan.args.partials = static_cast<int32_t*>(workspace);
  if (plan.workspace_bytes > 0 && workspace == nullptr) {
    return Status::Error("a layer came without its workspace of " + std::to_string(plan.workspace_bytes) +
                         " bytes; expected as many as WorkspaceBytes says");
  }
  KLB_RETURN_IF_ERROR(LaunchConv(plan, stream));
  return plan.args.slices == 1 ? Status() : LaunchEach(AddSlices{plan.args}, stream);
}

Status DepthwiseConv2D(const ConvShape& shape, const int8_t* kernel, const ConvCall& call, Stream stream) {
  KLB_RETURN_IF_ERROR(CheckDepthwise(shape));
  ConvArgs args;
  KLB_RETURN_IF_ERROR(PlanWindow(shape, call, &args));
  return LaunchEach(DepthwiseQuad{args, kernel, static_cast<int32_t>(shape.out_channels / shape.in_channels)}, stream);
}

Status MaxPool2D(const ConvShape& shape, const int8_t* input, int32_t padding_code, int32_t clamp_min,
                 int32_t clamp_max, int8_t* output, Stream stream) {
  KLB_RETURN_IF_ERROR(CheckPool(shape, padding_code, clamp_min, clamp_max));
  ConvCall call;
  call.input = input;
  call.epilogue.type = OutputType::kInt32;
  ConvArgs args;
  KLB_RETURN_IF_ERROR(PlanWindow(shape, call, &args));
  return LaunchEach(PoolQuad{args, output, padding_code, clamp_min, clamp_max}, stream);
}

Status LookUp(const int8_t* input, int64_t size, const int8_t* table, int8_t* output, Stream stream) {
  return LaunchEach(LookUpCode{input, table, output, size}, stream);
}

Status LookUpPair(const int8_t* first, const int8_t* second, int64_t size, const int8_t* table, int8_t* output,
                  Stream stream) {
  return LaunchEach(LookUpPairOfCodes{first, second, table, output, size}, stream);
}

Status OutputFactors(const float* scale, const float* bias, int64_t channels, float input_scale, float output_scale,
                     int32_t* output, Stream stream) {
  return LaunchEach(OutputFactorOfChannel{scale, bias, output, channels, input_scale, output_scale}, stream);
}

Status PackWeights(const ConvShape& shape, const PackedWeights& weights, const int8_t* kernel, uint8_t* codes,
                   int32_t* sums, Stream stream) {
  ConvArgs args;
  KLB_RETURN_IF_ERROR(PlanPacking(shape, weights, &args));
  const bool ternary = weights.layout == WeightLayout::kTernary2Bit;
  const PackByte pack = {args, kernel, codes, static_cast<int32_t>(shape.groups), ternary};
  KLB_RETURN_IF_ERROR(LaunchEach(pack, stream));
  return LaunchEach(PackSum{pack, sums}, stream);
}

}  // namespace keras_lowbit::cuda
