// Runs CUDA kernels on the CPU: every thread is a fiber, the blocks of a cluster run together, in random order.
//
// What is asynchronous on the GPU is done as late as it may be, or at a random moment: cp.async lands at once or when
// it is waited for, a tensor-map load any time after it is issued, wgmma reads its operands only when it is waited for.
// So a stage that is overwritten too early, or read too soon, gives wrong numbers (shared memory starts as NaN), and a
// barrier that never completes ends the process. What it can't show: speed, and whether the PTX text means this.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define ENCORE_DEVICE inline

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
inline Index threadIdx, blockIdx, gridDim;

namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::exit(70);
}

inline std::mt19937 dice(1);

// Threads that wait for one another; `phase` counts how often all have come.
struct Meeting {
  int size = 0, here = 0;
  int64_t phase = 0;
};

struct Barrier {  // mbarrier
  int count = 0, pending = 0;
  int64_t bytes = 0;
  int phase = 0;
};

struct Warp {
  Meeting meeting;
  uint32_t address[32], a[32][4], b[32][2];
  float value[32];
};

constexpr uint32_t kSharedBase = 0x210;  // aligned to 16 bytes and no more: kernels must align further themselves

struct Block {
  std::vector<unsigned char> shared;
  std::map<uint32_t, Barrier> barriers;
  Meeting meeting;
  std::vector<Warp> warps;

  template <class T>
  T& at(uint32_t address) {
    if (address < kSharedBase || address + sizeof(T) > kSharedBase + shared.size()) fail("shared memory out of bounds");
    if (address % sizeof(T) != 0) fail("shared memory misaligned");
    return *reinterpret_cast<T*>(shared.data() + (address - kSharedBase));
  }
};

struct Fiber {
  ucontext_t context;  // to start it; from then on it jumps, which costs no system call
  jmp_buf here;
  bool started = false;
  std::unique_ptr<char[]> stack;
  Index thread, block;
  int rank = 0;
  bool done = false;
  std::vector<std::function<void()>> open;                // issued, not yet committed
  std::vector<std::vector<std::function<void()>>> groups;  // committed
};

inline std::vector<Block> blocks;  // of the cluster that runs
inline Meeting everyone;
inline std::vector<std::function<void()>> flights;  // loads under way
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* current = nullptr;
inline jmp_buf scheduler;
inline int64_t progress = 0;
inline std::function<void()> body;

inline Block& block() { return blocks[static_cast<size_t>(current->rank)]; }
inline Warp& warp() { return block().warps[threadIdx.x / 32]; }

[[gnu::noinline]] inline void yield() {
  if (_setjmp(current->here) == 0) _longjmp(scheduler, 1);
}

[[gnu::noinline]] inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.thread;
  blockIdx = fiber.block;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

inline void meet(Meeting& meeting) {
  const int64_t phase = meeting.phase;
  if (++meeting.here == meeting.size) {
    meeting.here = 0;
    ++meeting.phase;
    ++progress;
    return;
  }
  while (meeting.phase == phase) yield();
}

inline void settle(Barrier& barrier) {
  if (barrier.pending < 0) fail("more arrivals than a barrier has");
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.count;
  ++progress;
}

inline void trampoline() {
  body();
  current->done = true;
  ++progress;
  _longjmp(scheduler, 1);
}

inline void run(unsigned grid, unsigned threads, unsigned cluster, size_t shared, const std::function<void()>& kernel) {
  if (grid == 0 || grid % cluster != 0) fail("a grid that is no multiple of the cluster");
  gridDim.x = grid;
  body = kernel;
  for (unsigned first = 0; first < grid; first += cluster) {
    blocks.assign(cluster, Block());
    everyone = {static_cast<int>(threads * cluster), 0, 0};
    fibers.clear();
    for (unsigned rank = 0; rank < cluster; ++rank) {
      Block& now = blocks[rank];
      now.shared.assign(shared, 0xff);
      now.meeting.size = static_cast<int>(threads);
      now.warps.resize(threads / 32);
      for (Warp& each : now.warps) each.meeting.size = 32;
      for (unsigned thread = 0; thread < threads; ++thread) {
        auto fiber = std::make_unique<Fiber>();
        fiber->stack.reset(new char[1 << 16]);  // not cleared: that takes as long as all else
        fiber->thread.x = thread;
        fiber->block.x = first + rank;
        fiber->rank = static_cast<int>(rank);
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.get();
        fiber->context.uc_stack.ss_size = 1 << 16;
        makecontext(&fiber->context, trampoline, 0);
        fibers.push_back(std::move(fiber));
      }
    }
    std::vector<size_t> order(fibers.size() / 32);  // warps in random order, lanes in theirs
    for (size_t at = 0; at < order.size(); ++at) order[at] = at;
    int64_t before = -1;
    for (int idle = 0, left = 1; left > 0;) {
      left = 0;
      std::shuffle(order.begin(), order.end(), dice);
      for (const size_t group : order) {
        for (size_t lane = 0; lane < 32; ++lane) {
          Fiber& fiber = *fibers[group * 32 + lane];
          if (fiber.done) continue;
          ++left;
          resume(fiber);
        }
      }
      while (!flights.empty() && dice() % 3 > 0) {
        std::swap(flights[dice() % flights.size()], flights.back());
        const auto flight = std::move(flights.back());
        flights.pop_back();
        flight();
        ++progress;
      }
      idle = progress == before && flights.empty() ? idle + 1 : 0;
      before = progress;
      if (idle > 1000) fail("deadlock");
    }
    if (!flights.empty()) fail("a block ended before its loads had come");
    for (const auto& fiber : fibers)
      if (!fiber->open.empty() || !fiber->groups.empty()) fail("a thread ended before its copies or products");
  }
}

}  // namespace emulator

#include "emulated_instructions.h"
#include "emulated_runtime.h"
