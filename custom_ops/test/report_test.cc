// Prints what the CUDA benchmark would: the jobs, and a report of made-up times under a name of many signs. The Python test
// of the benchmark (tests/ops/test_cuda_bench.py) reads it.
#include <cstdio>

#include "bench/report_bench.h"
#include "bench/weights_bench.h"

int main() {
  using namespace keras_lowbit::bench;
  std::vector<std::string> jobs, kinds, rows;
  for (const WeightsKind& kind : kWeightsKinds) kinds.push_back(Quoted(kind.name));
  const Ceilings ceilings = {2000, 500};
  for (const Job& job : AllJobs(2)) {
    jobs.push_back(DescribeWork(job));
    rows.push_back(Describe(job, "ternary", 1000, {3, 1, 2}, ceilings));
  }
  const DeviceFacts facts = {"no card \"at\" \\all\n", "none", 8, 0, 108, 13000, 13000, 1, 2, 1e300 * 1e300, ceilings};
  const std::string described = JsonObject().Raw("weights", JsonList(kinds)).Raw("jobs", JsonList(jobs)).Text();
  const std::string report = Describe(facts).Add("rounds", 3).Raw("results", JsonList(rows)).Text();
  std::printf("%s\n", JsonObject().Raw("described", described).Raw("report", report).Text().c_str());
  return 0;
}
