// What the CUDA benchmark prints, as JSON. Plain C++: a test reads it without a card.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/network_bench.h"

namespace keras_lowbit::bench {

inline std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    char escaped[8] = {c, 0};
    if (static_cast<unsigned char>(c) < 0x20) std::snprintf(escaped, sizeof(escaped), "\\u%04x", c);
    if (c == '"' || c == '\\') std::snprintf(escaped, sizeof(escaped), "\\%c", c);
    quoted += escaped;
  }
  return quoted + "\"";
}

// An object, field by field.
class JsonObject {
 public:
  JsonObject& Add(const char* name, const std::string& text) { return Raw(name, Quoted(text)); }
  JsonObject& Add(const char* name, const char* text) { return Raw(name, Quoted(text)); }
  JsonObject& Add(const char* name, int64_t number) { return Raw(name, std::to_string(number)); }
  JsonObject& Add(const char* name, int number) { return Add(name, static_cast<int64_t>(number)); }
  JsonObject& Add(const char* name, double number) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.6g", number);
    return Raw(name, std::isfinite(number) ? text : "null");
  }
  JsonObject& Raw(const char* name, const std::string& json) {
    text_ += (text_.empty() ? "{" : ", ") + Quoted(name) + ": " + json;
    return *this;
  }
  std::string Text() const { return text_.empty() ? "{}" : text_ + "}"; }

 private:
  std::string text_;
};

inline std::string JsonList(const std::vector<std::string>& items) {
  std::string text = "[";
  for (size_t i = 0; i < items.size(); ++i) text += (i == 0 ? "\n  " : ",\n  ") + items[i];
  return text + "]";
}

// What the device can do at most, measured in the same run.
struct Ceilings {
  double gmacs, gigabytes;
};

struct DeviceFacts {
  std::string name, product;
  int major, minor, processors, driver, runtime, highest_clock_khz, highest_memory_clock_khz;
  double clock_mhz;  // measured in the same run
  Ceilings ceilings;
};

inline JsonObject Describe(const DeviceFacts& d) {
  JsonObject object;
  object.Add("device", d.name).Add("compute_capability", std::to_string(d.major) + "." + std::to_string(d.minor));
  object.Add("processors", d.processors).Add("driver", d.driver).Add("runtime", d.runtime);
  object.Add("highest_clock_khz", d.highest_clock_khz).Add("highest_memory_clock_khz", d.highest_memory_clock_khz);
  object.Add("clock_mhz", d.clock_mhz).Add("product", d.product);
  return object.Add("int8_peak_gmacs", d.ceilings.gmacs).Add("read_gb_s", d.ceilings.gigabytes);
}

// One thing to be measured: a layer, or a network in a CUDA graph.
struct Job {
  std::string name, list;
  bool is_network;
  ConvShape shape;  // of a layer; of a network its first
  int64_t macs;
};

inline Job LayerJob(const Case& c, const char* list) {
  const ConvShape& s = c.shape;
  return {c.name, list, false, s, s.out_pixels() * s.taps() * s.in_channels / s.groups * s.out_channels};
}

inline std::vector<Job> AllJobs(int64_t batch) {
  std::vector<Job> jobs;
  const Network network = ResNet50Network(batch);
  jobs.push_back({"ResNet-50", "networks", true, network.steps[0].shape, network.macs()});
  const auto add = [&](std::vector<Case> cases, const char* list) {
    for (Case& c : cases) {
      c.shape.batch = batch;
      jobs.push_back(LayerJob(c, list));
    }
  };
  add(ResNet50(), "ResNet-50");
  add(MobileNetV2(), "MobileNetV2");
  for (Case c : LargeDense()) {
    jobs.push_back(LayerJob(c, "dense"));
    c.shape.in_width = 256;  // rows
    jobs.push_back(LayerJob(c, "dense"));
  }
  return jobs;
}

inline std::string Describe(const ConvShape& s) {
  JsonObject object;
  object.Add("batch", s.batch).Add("in_height", s.in_height).Add("in_width", s.in_width);
  object.Add("in_channels", s.in_channels).Add("out_channels", s.out_channels);
  object.Add("kernel", s.kernel_height).Add("stride", s.stride_height);
  object.Add("pad_top", s.pad_top).Add("pad_bottom", s.pad_bottom);
  return object.Add("pad_left", s.pad_left).Add("pad_right", s.pad_right).Text();
}

inline std::string Describe(const Network& network) {
  static const char* const kKinds[] = {"conv", "average", "max_pool"};
  std::vector<std::string> steps;
  for (const Step& step : network.steps) {
    JsonObject object;
    object.Add("kind", kKinds[static_cast<int>(step.kind)]).Add("input", step.input).Add("output", step.output);
    object.Add("residual", step.residual).Raw("relu", step.relu ? "true" : "false");
    steps.push_back(object.Raw("shape", Describe(step.shape)).Text());
  }
  return JsonList(steps);
}

inline JsonObject Describe(const Job& job) {
  JsonObject object;
  object.Add("layer", job.name).Add("list", job.list).Add("batch", job.shape.batch).Add("macs", job.macs);
  return object;
}

// With what another program needs to do the same work.
inline std::string DescribeWork(const Job& job) {
  JsonObject object = Describe(job);
  if (job.is_network) return object.Raw("steps", Describe(ResNet50Network(job.shape.batch))).Text();
  return object.Raw("shape", Describe(job.shape)).Text();
}

// times: milliseconds of each round.
inline std::string Describe(const Job& job, const char* weights, int64_t weight_bytes, std::vector<double> times,
                            const Ceilings& ceilings) {
  std::sort(times.begin(), times.end());
  const double gmacs = job.macs / times[0] / 1e6, gigabytes = weight_bytes / times[0] / 1e6;
  JsonObject object = Describe(job);
  object.Add("weights", weights).Add("weight_bytes", weight_bytes).Add("ms", times[0]);
  object.Add("median_ms", times[times.size() / 2]).Add("gmacs", gmacs).Add("of_int8_peak", gmacs / ceilings.gmacs);
  return object.Add("weight_gb_s", gigabytes).Add("of_read_peak", gigabytes / ceilings.gigabytes).Text();
}

}  // namespace keras_lowbit::bench
