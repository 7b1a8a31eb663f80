// Who computes which part of which tile: plain arithmetic that the kernels, the launcher and a host test share.
//
// The result [O, I] is cut into tiles. A worker (a block, or a cluster of two) takes a whole tile through all samples
// and keeps its sums in registers, so workers that run side by side read the same samples and meet in L2. The tiles
// left over when the workers are dealt out evenly, fewer than there are workers, are cut by samples instead: each
// worker takes an equal share of their (tile, sample) units, and several workers add to one tile.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ENCORE_BOTH __host__ __device__ __forceinline__
#else
#define ENCORE_BOTH inline
#endif

namespace encore::cuda {

// Within these limits 32-bit arithmetic holds: the units of the tail, times the workers, stay below 2^31.
constexpr int kMaxWorkers = 512, kMaxSamples = 4096;

struct Plan {
  int samples;
  int tiles_o, tiles_i;
  int workers;
};

struct Segment {
  int tile;
  int first, last;  // samples [first, last)
  int slot;         // where a part of a tile may be kept until the fold, below 2 * workers; -1 for a whole tile
};

ENCORE_BOTH int tiles(const Plan& plan) { return plan.tiles_o * plan.tiles_i; }

// The tiles that one worker takes whole.
ENCORE_BOTH int rounds(const Plan& plan) { return tiles(plan) / plan.workers; }

ENCORE_BOTH int tail_tiles(const Plan& plan) { return tiles(plan) % plan.workers; }

// The segments of a worker, index = 0, 1, … until false. A share of the tail is at most `samples` long, so it touches
// at most two tiles.
ENCORE_BOTH bool segment(const Plan& plan, int worker, int index, Segment& out) {
  const int whole = rounds(plan), n = plan.samples;
  if (index < whole) {
    out = {index * plan.workers + worker, 0, n, -1};
    return true;
  }
  const int units = tail_tiles(plan) * n, piece = index - whole;
  const int begin = units * worker / plan.workers, end = units * (worker + 1) / plan.workers;
  const int boundary = (begin / n + 1) * n;
  const int from = piece == 0 ? begin : boundary;
  const int to = piece == 0 && boundary < end ? boundary : end;
  if (piece > 1 || from >= to) return false;
  const int first = from % n, last = first + (to - from);
  out = {whole * plan.workers + from / n, first, last, last - first == n ? -1 : worker * 2 + piece};
  return true;
}

// The workers that may hold a part of a tile of the tail (counted from 0): [first, last).
ENCORE_BOTH void sharers(const Plan& plan, int tail, int& first, int& last) {
  const int units = tail_tiles(plan) * plan.samples, begin = tail * plan.samples, end = begin + plan.samples;
  first = begin * plan.workers / units;
  last = (end * plan.workers + units - 1) / units;
}

// Tiles are numbered in bands of 8 rows, column by column within a band: neighbours in number form a near-square block
// and share their operands in L2.
ENCORE_BOTH void place(const Plan& plan, int tile, int& o, int& i) {
  constexpr int kBand = 8;
  const int top = tile / (kBand * plan.tiles_i) * kBand;
  const int rows = plan.tiles_o - top < kBand ? plan.tiles_o - top : kBand;
  const int within = tile - top * plan.tiles_i;
  o = top + within % rows;
  i = within / rows;
}

// Operands split into a high and a low bfloat16 part are multiplied in up to three passes: high·high, then the two
// cross terms; low·low is below the error of the split itself.
ENCORE_BOTH int passes(int planes_a, int planes_b) { return planes_a + planes_b - 1; }
ENCORE_BOTH int plane_a(int pass, int planes_a) { return pass == 1 && planes_a == 2 ? 1 : 0; }
ENCORE_BOTH int plane_b(int pass, int planes_a) { return pass == (planes_a == 2 ? 2 : 1) ? 1 : 0; }

}  // namespace encore::cuda
