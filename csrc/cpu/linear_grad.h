// The CPU kernels of linear_grad, without torch: the caller brings the threads.
#pragma once

#include <cstdint>
#include <functional>

#include "../linear_grad.h"

namespace encore::cpu {

// Some samples of a call, their operands laid out as float32 panels for the tiles of one instruction set. A tile is
// `rows` of O by `columns` of I; beyond the edges of a matrix the panels hold zeros.
struct Work {
  const LinearGrad* grad;
  int64_t first, samples;  // samples [first, first + samples)
  float* a;                // [samples, panels, T, columns]
  float* b;                // [samples, blocks, T, rows]
  int64_t panels, blocks;  // how many tiles side by side, and one below the other
  int64_t group;           // blocks that one task takes, so that they stay in the L2 cache while it goes along A
  double* sums;            // [tasks, samples, 1 + M]: a task's share of the norm and of each dot
};

// What is compiled for each instruction set (see tile.h).
struct Isa {
  const char* name;
  int64_t rows, columns;
  void (*pack)(const Work&, int64_t begin, int64_t end);  // rows [begin, end) of samples * T
  void (*reduce)(const Work&, int64_t task);  // task: group index * panels + panel
};

constexpr int64_t kGroup = 16;   // the most blocks in a group
constexpr int64_t kHeld = 2;     // samples whose tiles are reduced together
constexpr int64_t kDepth = 256;  // positions summed at a stretch: so deep a panel of A stays in the L1 cache, and
                                 // rounding errors grow with this root rather than with T's

extern const Isa portable;
#ifdef __x86_64__
extern const Isa avx2, avx512;
#endif

// The best instruction set that this processor has, or the one that ENCORE_CPU_ISA names; read anew at each call.
// Throws std::runtime_error for a name that is unknown or that this processor lacks.
const Isa& choose_isa();

// Calls body(begin, end) for pieces of [0, count), on several threads, in any order; a piece is `grain` or more.
using Parallel =
    std::function<void(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body)>;

// The same bits at each call with the same arguments and instruction set, whatever the number of threads.
// Takes max(T, 512) * (I + O) floats of memory, however many samples there are, and keeps them for the next call.
void linear_grad(const LinearGrad& grad, const Isa& isa, const Parallel& parallel);

}  // namespace encore::cpu
