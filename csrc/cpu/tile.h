// One tile of G_n: its products summed in registers, then reduced. Included by a source file for each instruction set,
// which defines ENCORE_ISA (the name), kWidth (floats in a vector register), kRows and kVectors (a tile is kRows by
// kVectors registers; all of them and kVectors + 1 more have to fit the register file), and opens a target region.
// Vectors are the compiler's own (GCC, clang), so that one text serves every processor. Nothing here may come out of a
// header of the standard library: a function that was inlined for AVX-512 could be the one that the linker keeps.

#include "reduce.h"
#include "widen.h"

namespace encore::cpu {
namespace {

constexpr int64_t kGroup = 16;
constexpr int64_t kGroupBytes = kWidth == 16 ? 512 * 1024 : 256 * 1024;  // half of the L2 cache that comes with them
constexpr int64_t kPackRows = kWidth == 16 ? 8 : 4;  // more would share the few cache sets that wide rows begin in
constexpr int64_t kAhead = 4;     // in so many last blocks of a group, the panel of A that comes next is fetched

// A matrix [count, size] into panels [panels, length, kPanel], from the position that `packed` is at.
template <int64_t kPanel, class Source>
inline void pack_rows(const Source* rows, int64_t stride, int64_t count, int64_t size, int64_t length, float* packed) {
  for (int64_t at = 0; at < size; at += kPanel, packed += length * kPanel) {
    const Source* from = rows + at;
    float* to = packed;
    if (at + kPanel <= size)
      for (int64_t t = 0; t < count; ++t, from += stride, to += kPanel) {
        __builtin_prefetch(from + 2 * kPackRows * stride);  // beyond the end of a matrix it does no harm
        widen<kPanel>(from, to);
      }
    else
      for (int64_t t = 0; t < count; ++t, from += stride, to += kPanel)
        for (int64_t k = 0; k < kPanel; ++k) to[k] = at + k < size ? widen(from[k]) : 0.0f;
  }
}

template <int64_t kPanel>
void pack_rows(const void* from, DType type, int64_t offset, int64_t stride, int64_t count, int64_t size,
               int64_t length, float* packed) {
  if (type == DType::float32)
    pack_rows<kPanel>(static_cast<const float*>(from) + offset, stride, count, size, length, packed);
  else if (type == DType::bfloat16)
    pack_rows<kPanel>(static_cast<const Bfloat16*>(from) + offset, stride, count, size, length, packed);
  else
    pack_rows<kPanel>(static_cast<const Float16*>(from) + offset, stride, count, size, length, packed);
}

int64_t panel_size(DType, int64_t length, int64_t width) { return length * width; }

void pack(const Work& work, int64_t begin, int64_t end) {
  const LinearGrad& g = *work.grad;
  while (begin < end) {
    // Some rows at a time, so that what is written lies together and what is read is still cached for the next panel.
    const int64_t s = begin / g.t, t = begin % g.t, n = work.first + s;
    const int64_t most = g.t - t < kPackRows ? g.t - t : kPackRows, count = end - begin < most ? end - begin : most;
    float* a = work.a + (s * work.panels * g.t + t) * kColumns;
    float* b = work.b + (s * work.blocks * g.t + t) * kRows;
    pack_rows<kColumns>(g.a, g.a_type, n * g.a_stride_n + t * g.a_stride_t, g.a_stride_t, count, g.i, g.t, a);
    pack_rows<kRows>(g.b, g.b_type, n * g.b_stride_n + t * g.b_stride_t, g.b_stride_t, count, g.o, g.t, b);
    begin += count;
  }
}

// tile [kRows, kColumns] = b^T a + (add ? tile : 0), for b [depth, kRows] and a [depth, kColumns]. Meanwhile a
// kAhead-th part of a panel like `a` is fetched from `next` on. A loop of its own, for fetching what is there costs, too.
template <bool kFetch>
inline void multiply(int64_t depth, const float* __restrict b, const float* __restrict a, float* __restrict tile,
                     bool add, const float* next = nullptr) {
  Vector sum[kRows][kVectors] = {};
  for (int64_t t = 0; t < depth; ++t, a += kColumns, b += kRows) {
    if (kFetch) {
      __builtin_prefetch(next);
      next += kColumns / kAhead;
    }
    Vector x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) x[v] = reinterpret_cast<const Unaligned*>(a)[v];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += b[r] * x[v];
  }
  Unaligned* const out = reinterpret_cast<Unaligned*>(tile);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) out[r * kVectors + v] = add ? out[r * kVectors + v] + sum[r][v] : sum[r][v];
}

// The tiles of one panel of A with a group of blocks of B. Those of kHeld samples are kept, so that what they are added
// to is read and written once for all of them.
void reduce(const Work& work, int64_t task) {
  const LinearGrad& g = *work.grad;
  const int64_t panel = task % work.panels, first = task / work.panels * work.group;
  const int64_t blocks = first + work.group < work.blocks ? work.group : work.blocks - first;
  const int64_t i = panel * kColumns, columns = g.i - i < kColumns ? g.i - i : kColumns;
  const float* const a = work.a + panel * g.t * kColumns;
  const float* const b = work.b + first * g.t * kRows;
  double* const sums = work.sums + task * work.samples * (1 + g.m);
  for (int64_t k = 0; k < work.samples * (1 + g.m); ++k) sums[k] = 0;
  alignas(64) float tiles[kGroup][kHeld * kTile];
  for (int64_t s = 0; s < work.samples; ++s) {
    const int64_t k = s % kHeld;
    for (int64_t t = 0; t < g.t; t += kDepth) {
      const int64_t depth = g.t - t < kDepth ? g.t - t : kDepth;
      const bool is_last = t + depth == g.t && (k + 1 == kHeld || s + 1 == work.samples);
      const float* const panel_a = a + (s * work.panels * g.t + t) * kColumns;
      // The next stretch's, sample's, or task's; with the last of all, something that is not used.
      const float* const next = t + depth < g.t           ? panel_a + depth * kColumns
                                : s + 1 < work.samples ? a + (s + 1) * work.panels * g.t * kColumns
                                                       : a + g.t * kColumns;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t o = (first + block) * kRows;
        const Place place{o, i, g.o - o < kRows ? g.o - o : kRows, columns};
        if (is_last) {  // what the tiles will be added to comes from memory while the products are summed
          prefetch(g.fisher, g.fisher_stride, place);
          prefetch(g.total, g.total_stride, place);
          for (int64_t m = 0; m < g.m; ++m) prefetch(g.directions + m * g.o * g.i, g.i, place);
        }
        const float* const block_b = b + ((s * work.blocks + block) * g.t + t) * kRows;
        float* const tile = tiles[block] + k * kTile;
        if (const int64_t part = block - blocks + kAhead; part < 0)
          multiply<false>(depth, block_b, panel_a, tile, t > 0);
        else
          multiply<true>(depth, block_b, panel_a, tile, t > 0, next + part * depth * kColumns / kAhead);
        if (!is_last) continue;
        const auto reduce_row = columns == kColumns ? reduce_tiles<Vectors> : reduce_tiles<Floats>;
        reduce_row(g, work.first + s - k, k + 1, tiles[block], place, sums + (s - k) * (1 + g.m));
      }
    }
  }
}

}  // namespace

const Isa ENCORE_ISA = {ENCORE_ISA_NAME, kRows, kColumns, 512, kGroup, 1, kGroupBytes, 0, panel_size, pack, reduce};

}  // namespace encore::cpu
