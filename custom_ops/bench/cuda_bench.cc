// Layers and ResNet-50 on a CUDA device, and what the device can do at most, as JSON: `cuda_bench [batch] [rounds]`. Needs
// CUDA alone. Exit status 77, and a sentence, where no device is.
//
// All kinds of weights of a layer take turns within each round; the best and the median round are given.
// bench/torch_bench.py does the same with PyTorch's kernels among them.
#include <cstdio>
#include <cstdlib>

#include "bench/cuda_jobs_bench.h"

namespace keras_lowbit::bench {
namespace {

void Measure(const Job& job, int rounds, const Ceilings& ceilings, std::vector<std::string>* rows) {
  std::vector<std::unique_ptr<Runner>> runners;
  for (const WeightsKind& kind : kWeightsKinds) runners.push_back(Open(job, kind));
  std::vector<std::vector<double>> times(runners.size());
  for (int round = 0; round <= rounds; ++round) {
    for (size_t i = 0; i < runners.size(); ++i) {
      const double time = runners[i]->Milliseconds();
      if (round > 0) times[i].push_back(time);
    }
  }
  for (size_t i = 0; i < runners.size(); ++i) {
    rows->push_back(Describe(job, kWeightsKinds[i].name, runners[i]->weight_bytes(), times[i], ceilings));
  }
}

}  // namespace
}  // namespace keras_lowbit::bench

int main(int argc, char** argv) {
  using namespace keras_lowbit;
  using namespace keras_lowbit::bench;
  if (!cuda::HasDevice()) return cuda::kNoDevice;
  const int64_t batch = argc > 1 ? std::atoll(argv[1]) : 64;
  const int rounds = argc > 2 ? std::max(std::atoi(argv[2]), 1) : 9;
  const DeviceFacts facts = MeasureDevice();
  std::vector<std::string> rows;
  for (const Job& job : AllJobs(batch)) Measure(job, rounds, facts.ceilings, &rows);
  std::printf("%s\n", Describe(facts).Add("rounds", rounds).Raw("results", JsonList(rows)).Text().c_str());
  return 0;
}
