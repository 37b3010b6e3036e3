// A CUDA block on the CPU, for the bodies of cuda/.
//
// PhasedBlock runs each step of a body for all threads in a loop: fast, and the same every time. ThreadedBlock runs every
// warp in a thread of its own, and Sync is a real barrier, so that ThreadSanitizer finds one that is missing. Copies to
// shared memory that run on by themselves are carried out only when they are waited for. What neither shows: threads of a
// warp that run apart, and the memory model of a GPU.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/dots.h"
#include "cuda/tile.h"

namespace keras_lowbit::cuda {

// What mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 computes, from the tables of the PTX ISA ("Matrix Fragments for
// mma.m16n8k32") alone: fragments of 32 lanes to matrices, their product, and back.
struct Fragments {
  const uint32_t* a;
  const uint32_t* b;
  int32_t* c;
};

inline int FragmentByte(const uint32_t* registers, int i) {
  return static_cast<int8_t>(registers[i / 4] >> (8 * (i % 4)));
}

inline void EmulateMma(const Fragments* lanes) {
  int a[16][32], b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group_id = lane >> 2, thread_in_group = lane % 4;
    for (int i = 0; i < 16; ++i) {
      const int row = i < 4 || (i >= 8 && i < 12) ? group_id : group_id + 8;
      const int column = i < 8 ? thread_in_group * 4 + (i & 3) : thread_in_group * 4 + (i & 3) + 16;
      a[row][column] = FragmentByte(lanes[lane].a, i);
    }
    for (int i = 0; i < 8; ++i) {
      const int row = i < 4 ? thread_in_group * 4 + (i & 3) : thread_in_group * 4 + (i & 3) + 16;
      b[row][group_id] = FragmentByte(lanes[lane].b, i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
      uint32_t sum = static_cast<uint32_t>(lanes[lane].c[i]);
      for (int k = 0; k < 32; ++k) sum += static_cast<uint32_t>(a[row][k] * b[k][column]);
      lanes[lane].c[i] = static_cast<int32_t>(sum);
    }
  }
}

// The stand-in for GPUs without that instruction (cuda/dots.h), lane by lane.
inline void EmulateDots(const Fragments* lanes) {
  struct Peers {
    const Fragments* lanes;
    uint32_t A(int lane, int i) const { return lanes[lane].a[i]; }
    uint32_t B(int lane, int i) const { return lanes[lane].b[i]; }
  };
  for (int lane = 0; lane < kLanes; ++lane) MultiplyByDots(lane, Peers{lanes}, lanes[lane].c);
}

// What ldmatrix.sync.aligned.m8n8.x4.shared.b16 loads, from the PTX ISA alone: lanes 0-7 give the rows of the first matrix,
// 8-15 of the second and so on; in each register a lane gets two neighbouring 16-bit elements, of row lane / 4.
inline void EmulateLdmatrix(const uint16_t* const* rows, uint32_t* const* registers) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint16_t* elements = rows[8 * matrix + lane / 4];
      const int column = lane % 4 * 2;
      registers[lane][matrix] = elements[column] | static_cast<uint32_t>(elements[column + 1]) << 16;
    }
  }
}

using Product = void (*)(const Fragments* lanes);

struct GridPlace {
  int x, y, z;
};

// What a GPU's kernels are compiled with or without.
struct Instructions {
  Product product = EmulateMma;
  bool ldmatrix = false;
};

// Copies in groups, in the order in which they were asked for.
class Copies {
 public:
  void Add(void* to, const void* from) { open_.push_back({to, from}); }
  void Commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  void FinishAllBut(size_t groups) {
    for (; groups_.size() > groups; groups_.erase(groups_.begin())) {
      for (const auto& [to, from] : groups_.front()) std::memcpy(to, from, kVectorBytes);
    }
  }

 private:
  std::vector<std::pair<void*, const void*>> open_;
  std::vector<std::vector<std::pair<void*, const void*>>> groups_;
};

// Of a block, or of one of its warps: threads first .. first + count - 1.
template <class Registers>
class EmulatedThreads {
 public:
  EmulatedThreads(GridPlace place, Instructions instructions, void* shared, int first, int count)
      : place_(place), instructions_(instructions), shared_(shared), first_(first), registers_(count), copies_(count) {}

  int x() const { return place_.x; }
  int y() const { return place_.y; }
  int z() const { return place_.z; }
  void* shared() { return shared_; }

  template <class Step>
  void ForThreads(const Step& step) {
    for (size_t i = 0; i < registers_.size(); ++i) {
      running_ = i;
      step(first_ + static_cast<int>(i), registers_[i]);
    }
  }
  void Multiply(int tile, int field) {
    for (size_t warp = 0; warp < registers_.size(); warp += kLanes) {
      Fragments lanes[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        Registers& r = registers_[warp + lane];
        lanes[lane] = {r.a[tile], r.b[field], r.totals[tile][field]};
      }
      instructions_.product(lanes);
    }
  }
  bool LoadsMatrices() const { return instructions_.ldmatrix; }
  template <class Row>
  void LoadMatrices(int tile, const Row& row) {
    for (size_t warp = 0; warp < registers_.size(); warp += kLanes) {
      const uint16_t* rows[kLanes];
      uint32_t* registers[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        rows[lane] = reinterpret_cast<const uint16_t*>(row(first_ + static_cast<int>(warp) + lane));
        registers[lane] = registers_[warp + lane].a[tile];
      }
      EmulateLdmatrix(rows, registers);
    }
  }
  void CopyVector(void* to, const void* from) { copies_[running_].Add(to, from); }
  void Commit() { copies_[running_].Commit(); }
  template <int kGroups>
  void WaitForAllBut() {
    for (Copies& copies : copies_) copies.FinishAllBut(kGroups);
  }

 private:
  GridPlace place_;
  Instructions instructions_;
  void* shared_;
  int first_;
  size_t running_ = 0;
  std::vector<Registers> registers_;
  std::vector<Copies> copies_;
};

template <class Registers>
class PhasedBlock : public EmulatedThreads<Registers> {
 public:
  PhasedBlock(GridPlace place, Instructions instructions, void* shared)
      : EmulatedThreads<Registers>(place, instructions, shared, 0, kThreads) {}
  void Sync() {}
};

class Barrier {
 public:
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++waiting_ == kWarps) {
      waiting_ = 0;
      ++round_;
      all_.notify_all();
      return;
    }
    all_.wait(lock, [&] { return round != round_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  int waiting_ = 0;
  int64_t round_ = 0;
};

template <class Registers>
class ThreadedBlock : public EmulatedThreads<Registers> {
 public:
  ThreadedBlock(GridPlace place, Instructions instructions, void* shared, int warp, Barrier* barrier)
      : EmulatedThreads<Registers>(place, instructions, shared, warp * kLanes, kLanes), barrier_(barrier) {}
  void Sync() { barrier_->Wait(); }

 private:
  Barrier* barrier_;
};

// Runs `body(block)` as one block whose shared memory has exactly so many words, filled with garbage.
template <class Registers, class Body>
void RunBlock(GridPlace place, Instructions instructions, bool threaded, int shared_words, const Body& body) {
  std::vector<Vector> shared((shared_words + 3) / 4, Vector{{0xDEADBEEF, 0xDEADBEEF, 0xDEADBEEF, 0xDEADBEEF}});
  if (!threaded) {
    PhasedBlock<Registers> block(place, instructions, shared.data());
    return body(block);
  }
  Barrier barrier;
  std::vector<std::thread> warps;
  for (int warp = 0; warp < kWarps; ++warp) {
    warps.emplace_back([&, warp] {
      ThreadedBlock<Registers> block(place, instructions, shared.data(), warp, &barrier);
      body(block);
    });
  }
  for (std::thread& warp : warps) warp.join();
}

}  // namespace keras_lowbit::cuda
