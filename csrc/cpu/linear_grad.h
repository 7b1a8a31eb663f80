// The CPU kernels of linear_grad, without torch: the caller brings the threads.
#pragma once

#include <cstdint>
#include <functional>

#include "../linear_grad.h"

namespace encore::cpu {

// Some samples of a call, their operands laid out as panels for the tiles of one instruction set, which says what they
// hold. A tile is `rows` of O by `columns` of I; beyond the edges of a matrix the panels hold zeros.
struct Work {
  const LinearGrad* grad;
  int64_t first, samples;  // samples [first, first + samples)
  float* a;                // [samples, panels, panel_size(T, columns)]
  float* b;                // [samples, blocks, panel_size(T, rows)]
  int64_t panels, blocks;  // how many tiles side by side, and one below the other
  int64_t group;           // blocks that one task takes, so that they stay in the L2 cache while it goes along A
  int64_t span;            // panels that one task takes
  double* sums;            // [tasks, samples, 1 + M]: a task's share of the norm and of each dot
};

// What is compiled for each instruction set (see tile.h and amx.cpp).
struct Isa {
  const char* name;
  int64_t rows, columns;
  int64_t packed;       // positions packed at a time: fewer waits between threads, yet cached
  int64_t group, span;  // the most blocks in a group, and panels in a span
  int64_t group_bytes;  // the most of B in a group, all samples
  int64_t pack_rows;    // pack's range is of samples * T (0), or of samples * ceil(T / pack_rows) * (panels + blocks)
  int64_t (*panel_size)(DType, int64_t length, int64_t width);  // in floats: T positions, `width` numbers each
  void (*pack)(const Work&, int64_t begin, int64_t end);
  void (*reduce)(const Work&, int64_t task);  // task: group index * spans + span index
};

constexpr int64_t kHeld = 2;     // samples whose tiles are reduced together
constexpr int64_t kDepth = 256;  // positions summed at a stretch: so deep a panel of A stays in the L1 cache, and
                                 // rounding errors grow with this root rather than with T's

extern const Isa portable;
#ifdef __x86_64__
extern const Isa avx2, avx512, amx;
#endif

// The best instruction set that this processor has, for that call where one is given, or the one that ENCORE_CPU_ISA
// names; read anew at each call.
// Throws std::runtime_error for a name that is unknown or that this processor lacks.
const Isa& choose_isa(const LinearGrad* grad = nullptr);

// Calls body(begin, end) for pieces of [0, count), on several threads, in any order; a piece is `grain` or more.
using Parallel =
    std::function<void(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body)>;

// The same bits at each call with the same arguments and instruction set, whatever the number of threads.
// Takes some max(T, 512) * (I + O) floats of memory (AMX: half as many more), however many samples there are, and keeps
// them for the next call.
void linear_grad(const LinearGrad& grad, const Isa& isa, const Parallel& parallel);

}  // namespace encore::cpu
