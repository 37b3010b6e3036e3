// The benchmark's jobs as plain C functions, for bench/torch_bench.py. Texts are JSON and live until the next call.
#include "bench/cuda_jobs_bench.h"
#include "core/export.h"

namespace keras_lowbit::bench {
namespace {

const char* Kept(std::string text) {
  static std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace
}  // namespace keras_lowbit::bench

using namespace keras_lowbit::bench;

// Nothing where there is no device.
KLB_EXPORT const char* KlbBenchDevice() {
  return Kept(keras_lowbit::cuda::HasDevice() ? Describe(MeasureDevice()).Text() : "");
}

KLB_EXPORT const char* KlbBenchJobs(int64_t batch) {
  std::vector<std::string> jobs, kinds;
  for (const Job& job : AllJobs(batch)) jobs.push_back(DescribeWork(job));
  for (const WeightsKind& kind : kWeightsKinds) kinds.push_back(Quoted(kind.name));
  return Kept(JsonObject().Raw("weights", JsonList(kinds)).Raw("jobs", JsonList(jobs)).Text());
}

KLB_EXPORT void* KlbBenchOpen(int64_t batch, int job, int weights) {
  return Open(AllJobs(batch)[job], kWeightsKinds[weights]).release();
}
KLB_EXPORT double KlbBenchMilliseconds(void* runner) { return static_cast<Runner*>(runner)->Milliseconds(); }
KLB_EXPORT int64_t KlbBenchWeightBytes(void* runner) { return static_cast<Runner*>(runner)->weight_bytes(); }
KLB_EXPORT void KlbBenchClose(void* runner) { delete static_cast<Runner*>(runner); }
