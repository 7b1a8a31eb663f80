// What the two tensor-core kernels share: the job, and what becomes of a tile of G_n once it stands in registers.
#pragma once

#include "plan.h"
#include "ptx.h"

namespace encore::cuda {

constexpr int kWarps = 8;      // that hold accumulators, in either kernel
constexpr int kTileRows = 128;  // output channels a block takes; its columns are a template parameter

struct Job {
  Plan plan;
  int blocks;  // a worker has: 1, or 2 in a cluster, whose tiles lie below one another
  int t, i, o;
  int planes_a, planes_b;

  float* fisher;  // the next five as in LinearGrad, from the first sample of this launch
  int64_t fisher_stride;
  float* total;
  int64_t total_stride;
  const float* scale;
  const float* weight;
  const float* directions;
  int64_t m;
  bool norms;

  float* partials;  // [samples, kinds, writers]: a warp's share of norms and dots; summed by fold_partials
  float* slots;     // [2 * workers, blocks, sums, rows, columns]: parts of tiles, for fold_slots; null adds at once
};

ENCORE_BOTH int64_t kinds(const Job& job) { return (job.norms ? 1 : 0) + job.m; }
ENCORE_BOTH int64_t writers(const Job& job) { return int64_t{tiles(job.plan)} * job.blocks * kWarps; }

// Which elements of a tile a thread holds, counted from the tile's corner. Register k of a 16×8 accumulator (PTX:
// mma.m16n8k16, wgmma.m64nNk16) is row lane / 4 (+ 8 for k & 2), column lane % 4 * 2 (+ 1 for k & 1); a warp has
// ACROSS of them side by side, and then the next 16 rows. So a thread has runs: a row, and of its columns two in eight.
template <int ACROSS>
struct Fragment {
  int top, left;

  ENCORE_DEVICE Fragment(int warp_row, int warp_column, int lane)
      : top(warp_row + lane / 4), left(warp_column + lane % 4 * 2) {}
  ENCORE_DEVICE int row(int run) const { return top + run * 8; }

  // The register that holds column `left + across * 8` of a run; the next one holds the column after.
  static ENCORE_DEVICE constexpr int index(int run, int across) {
    return run / 2 * (4 * ACROSS) + across * 4 + run % 2 * 2;
  }
};

// One result [O, I] += the sums of a tile. One atomic an element, and where a tile has one owner only one in all: then
// the order is fixed, and it is only that nobody waits for the old value.
template <int R, int ACROSS>
ENCORE_DEVICE void add_tile(const Job& job, float* to, int64_t stride, const float (&sums)[R],
                            const Fragment<ACROSS>& at, int corner_row, int corner_column) {
  const bool pairs = stride % 2 == 0 && reinterpret_cast<uintptr_t>(to) % 8 == 0;
  const int columns = job.i - corner_column - at.left;  // to the edge
#pragma unroll
  for (int run = 0; run < R / ACROSS / 2; ++run) {
    const int row = corner_row + at.row(run);
    if (row >= job.o) break;
    float* element = to + row * stride + corner_column + at.left;
#pragma unroll
    for (int across = 0; across < ACROSS; ++across) {
      const int k = at.index(run, across);
      if (pairs && across * 8 + 1 < columns) {
        add_pair(element + across * 8, sums[k], sums[k + 1]);
      } else {
        if (across * 8 < columns) add(element + across * 8, sums[k]);
        if (across * 8 + 1 < columns) add(element + across * 8 + 1, sums[k + 1]);
      }
    }
  }
}

template <int R, int ACROSS, int COLUMNS, bool TOTAL>
struct Sums {
  float fisher[R];
  float total[TOTAL ? R : 1];

  ENCORE_DEVICE void clear() {
#pragma unroll
    for (int k = 0; k < R; ++k) {
      fisher[k] = 0.f;
      if constexpr (TOTAL) total[k] = 0.f;
    }
  }

  ENCORE_DEVICE void add_sample(const float (&g)[R], float scale, float weight) {
#pragma unroll
    for (int k = 0; k < R; ++k) {
      fisher[k] = fmaf(scale * g[k], g[k], fisher[k]);
      if constexpr (TOTAL) total[k] = fmaf(weight, g[k], total[k]);
    }
  }

  // (o, i): the block's own tile. `part`: its place among the slots, or -1.
  ENCORE_DEVICE void flush(const Job& job, const Fragment<ACROSS>& at, int o, int i, int part) const {
    if (part >= 0 && job.slots != nullptr) {
      float* slot = job.slots + int64_t{part} * (TOTAL ? 2 : 1) * kTileRows * COLUMNS;
#pragma unroll
      for (int run = 0; run < R / ACROSS / 2; ++run) {
        float* element = slot + at.row(run) * COLUMNS + at.left;
#pragma unroll
        for (int across = 0; across < ACROSS; ++across) {
          const int k = at.index(run, across);
          element[across * 8] = fisher[k];
          element[across * 8 + 1] = fisher[k + 1];
          if constexpr (TOTAL) {
            element[kTileRows * COLUMNS + across * 8] = total[k];
            element[kTileRows * COLUMNS + across * 8 + 1] = total[k + 1];
          }
        }
      }
      return;
    }
    if (job.fisher != nullptr)
      add_tile(job, job.fisher, job.fisher_stride, fisher, at, o * kTileRows, i * COLUMNS);
    if constexpr (TOTAL) {
      if (job.total != nullptr)
        add_tile(job, job.total, job.total_stride, total, at, o * kTileRows, i * COLUMNS);
    }
  }
};

ENCORE_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// A warp's share of ‖G_n‖² and ⟨G_n, V_m⟩. Beyond the edges of [O, I] g is zero, for the operands are. `tile`: of the
// worker; (o, i): of the block.
template <int R, int ACROSS, int COLUMNS>
ENCORE_DEVICE void write_partials(const Job& job, const float (&g)[R], const Fragment<ACROSS>& at, int n, int tile,
                                  int o, int i) {
  const int corner_row = o * kTileRows, corner_column = i * COLUMNS;
  const int block = tile * job.blocks + o % job.blocks, warp = threadIdx.x / 32;
  float* out = job.partials + n * kinds(job) * writers(job) + int64_t{block} * kWarps + warp;
  const bool first = threadIdx.x % 32 == 0;
  if (job.norms) {
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int k = 0; k < R; ++k) sum[k % 4] = fmaf(g[k], g[k], sum[k % 4]);
    const float all = warp_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (first) *out = all;
    out += writers(job);
  }
  if constexpr (COLUMNS > 128) return;  // no register is left for dots: they take the narrow tile
  const float* direction = job.directions;
  const int columns = job.i - corner_column - at.left;
  for (int64_t m = 0; m < job.m; ++m) {
    float sum = 0.f;
#pragma unroll
    for (int run = 0; run < R / ACROSS / 2; ++run) {
      const int row = corner_row + at.row(run);
      if (row >= job.o) break;
      const float* element = direction + static_cast<int64_t>(row) * job.i + corner_column + at.left;
#pragma unroll
      for (int across = 0; across < ACROSS; ++across) {
        const int k = at.index(run, across);
        if (across * 8 < columns) sum = fmaf(g[k], element[across * 8], sum);
        if (across * 8 + 1 < columns) sum = fmaf(g[k + 1], element[across * 8 + 1], sum);
      }
    }
    const float all = warp_sum(sum);
    if (first) *out = all;
    out += writers(job);
    direction += static_cast<int64_t>(job.o) * job.i;
  }
}

}  // namespace encore::cuda
