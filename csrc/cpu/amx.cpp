// Eight tile registers of 16 rows by 32 bfloat16 numbers; four of them hold the tile.
//
// Operands are split into bfloat16 parts (see split.h). Of the nine products of a float32's parts with another's, six
// are taken; the other three are below what float32 rounds away. One instruction does 8192 of them in sixteen cycles,
// so six take a third of the time that float32 needs with AVX-512.
#include "linear_grad.h"

#ifdef __x86_64__
#if !defined(ENCORE_BASELINE) && !__has_include(<amxtileintrin.h>)  // GCC 10 and older: AVX-512 serves
const encore::cpu::Isa encore::cpu::amx = {"amx", 32, 32, 1, 1, 1, 0, 0, nullptr, nullptr, nullptr};
#else
#if defined(ENCORE_BASELINE)  // a test runs this text where the processor lacks the registers
#elif defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

constexpr int64_t kWidth = 16, kRows = 32, kVectors = 2;
#include "reduce.h"
#include "tmul.h"
#include "widen.h"

#include "split.h"

namespace encore::cpu {
namespace {

constexpr int64_t kGroup = 8, kSpan = 8;  // of so many tiles a stretch of both operands stays in the L2 cache

// Register 0 to 3: the quarters of the tile; 4 and 5: one part of b; 6 and 7: one part of a.
template <int64_t kPartsB, int64_t kPartsA>
struct Products {
  const uint32_t *b, *a;
  int64_t held_b = -1, held_a = -1;

  // All calls are of constants: what is asked here is known when this is compiled.
  __attribute__((always_inline)) void add(int64_t of_b, int64_t of_a) {
    if (of_b >= kPartsB || of_a >= kPartsA) return;
    if (held_b != of_b) {
      load<4>(b + 2 * of_b * kWords);
      load<5>(b + (2 * of_b + 1) * kWords);
    }
    if (held_a != of_a) {
      load<6>(a + 2 * of_a * kWords);
      load<7>(a + (2 * of_a + 1) * kWords);
    }
    held_b = of_b, held_a = of_a;
    multiply_add<0, 4, 6>();
    multiply_add<1, 4, 7>();
    multiply_add<2, 5, 6>();
    multiply_add<3, 5, 7>();
  }
};

// tile [kRows, kColumns] = b^T a, for some steps of a panel of each; after each step, `meanwhile(step)`: what that does
// is done while the products are under way.
template <int64_t kPartsB, int64_t kPartsA, class Meanwhile>
inline void multiply(int64_t steps, const float* b, const float* a, float* tile, const Meanwhile& meanwhile) {
  clear<0>();
  clear<1>();
  clear<2>();
  clear<3>();
  for (int64_t k = 0; k < steps; ++k) {
    Products<kPartsB, kPartsA> products{reinterpret_cast<const uint32_t*>(b) + k * kPartsB * 2 * kWords,
                                        reinterpret_cast<const uint32_t*>(a) + k * kPartsA * 2 * kWords};
    products.add(0, 2);  // each keeps an operand of the one before
    products.add(0, 1);
    products.add(1, 1);
    products.add(1, 0);
    products.add(2, 0);
    products.add(0, 0);
    meanwhile(k);
  }
  store<0>(tile, kColumns);
  store<1>(tile + kSide, kColumns);
  store<2>(tile + kSide * kColumns, kColumns);
  store<3>(tile + kSide * kColumns + kSide, kColumns);
}

inline Vector scaled(Vector value, Vector exponents) {
#ifdef ENCORE_BASELINE
  for (int64_t k = 0; k < kWidth; ++k) value[k] = __builtin_ldexpf(value[k], static_cast<int>(exponents[k]));
  return value;
#else
  return _mm512_scalef_ps(value, exponents);
#endif
}

// Some rows: sum (+)= fresh, scaled by the exponents of a's and b's columns.
inline void collect(float* sum, const float* fresh, int64_t rows, bool add, const float* b, const float* a) {
  Vector* const to = reinterpret_cast<Vector*>(sum);
  const Vector* const from = reinterpret_cast<const Vector*>(fresh);
  Vector exponents[kVectors];
  __builtin_memcpy(exponents, a, sizeof exponents);
  for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t k = r * kVectors + v;
      const Vector value = scaled(from[k], exponents[v] + b[r]);
      to[k] = add ? to[k] + value : value;
    }
}

// What is known of a tile whose products were summed, and which of its rows are still to be reduced.
struct Summed {
  int64_t s, stretch, panel, block;
  const float *products, *exponents_a, *exponents_b;
  int64_t left;
};

alignas(64) thread_local float tiles[kSpan * kGroup][kHeld * kTile];

// The tiles of a span of panels of A with a group of blocks of B, one stretch of positions after another. While the
// products of one tile are under way in the tile registers, the one before it is reduced, some rows at each step.
template <int64_t kPartsB, int64_t kPartsA>
void reduce(const Work& work, int64_t task) {
  const LinearGrad& g = *work.grad;
  const int64_t spans = (work.panels + work.span - 1) / work.span;
  const int64_t first_panel = task % spans * work.span, first_block = task / spans * work.group;
  const int64_t panels = first_panel + work.span < work.panels ? work.span : work.panels - first_panel;
  const int64_t blocks = first_block + work.group < work.blocks ? work.group : work.blocks - first_block;
  const int64_t steps = steps_of(g.t), stretches = (steps + kStretch - 1) / kStretch;
  const int64_t a_panel = panel_size(g.a_type, g.t, kColumns), b_panel = panel_size(g.b_type, g.t, kRows);
  double* const sums = work.sums + task * work.samples * (1 + g.m);
  for (int64_t k = 0; k < work.samples * (1 + g.m); ++k) sums[k] = 0;
  alignas(64) float products[2][kTile];
  Summed before = {};

  const auto place = [&](int64_t panel, int64_t block, int64_t row, int64_t rows) {
    const int64_t o = (first_block + block) * kRows + row, i = (first_panel + panel) * kColumns;
    return Place{o, i, g.o - o < rows ? g.o - o : rows, g.i - i < kColumns ? g.i - i : kColumns};
  };
  // As in tile.h, the tiles of kHeld samples are kept and reduced together.
  const auto is_last = [&](int64_t s, int64_t stretch) {
    return stretch + 1 == stretches && (s % kHeld + 1 == kHeld || s + 1 == work.samples);
  };
  const auto finish = [&](int64_t most) {
    if (before.left == 0) return;
    const int64_t row = kRows - before.left, rows = most < before.left ? most : before.left, held = before.s % kHeld;
    float* const first_tile = tiles[before.panel * blocks + before.block] + row * kColumns;
    const float* const fresh = before.products + row * kColumns;
    collect(first_tile + held * kTile, fresh, rows, before.stretch > 0, before.exponents_b + row, before.exponents_a);
    before.left -= rows;
    const Place of_rows = place(before.panel, before.block, row, rows);
    if (!is_last(before.s, before.stretch) || of_rows.rows <= 0) return;
    const int64_t s = before.s - held;
    const auto reduce_rows = of_rows.columns == kColumns ? reduce_tiles<Vectors> : reduce_tiles<Floats>;
    reduce_rows(g, work.first + s, held + 1, first_tile, of_rows, sums + s * (1 + g.m));
  };

  const Tiles registers;
  const float* const all_a = work.a + first_panel * a_panel;
  const float* const all_b = work.b + first_block * b_panel;
  int64_t turn = 0;
  for (int64_t s = 0; s < work.samples; ++s)
    for (int64_t stretch = 0; stretch < stretches; ++stretch)
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t left = steps - stretch * kStretch, count = left < kStretch ? left : kStretch;
        const int64_t rows = (kRows + count - 1) / count;
        const float* const a = all_a + (s * work.panels + panel) * a_panel + stretch * kStretchSize<kPartsA>;
        // What comes next of A is fetched; after the last of all, something that is not used.
        const float* next = panel + 1 < panels        ? a + a_panel
                            : stretch + 1 < stretches ? a - panel * a_panel + kStretchSize<kPartsA>
                            : s + 1 < work.samples    ? all_a + (s + 1) * work.panels * a_panel
                                                      : all_a + panels * a_panel;
        const int64_t lines = (kStretchSize<kPartsA> / kSide + blocks * count - 1) / (blocks * count);
        for (int64_t block = 0; block < blocks; ++block) {
          const float* const b = all_b + (s * work.blocks + block) * b_panel + stretch * kStretchSize<kPartsB>;
          float* const to = products[++turn % 2];
          multiply<kPartsB, kPartsA>(count, b, a, to, [&](int64_t k) {
            for (int64_t line = 0; line < lines; ++line, next += kSide) __builtin_prefetch(next, 0, 2);
            if (is_last(s, stretch)) {  // what the tile will be added to
              const Place of_rows = place(panel, block, k * rows, rows);
              prefetch(g.fisher, g.fisher_stride, of_rows);
              prefetch(g.total, g.total_stride, of_rows);
              for (int64_t m = 0; m < g.m; ++m) prefetch(g.directions + m * g.o * g.i, g.i, of_rows);
            }
            finish(rows);
          });
          before = {s, stretch, panel, block, to, a + count * kStepSize<kPartsA>, b + count * kStepSize<kPartsB>, kRows};
        }
      }
  finish(kRows);
}

void reduce(const Work& work, int64_t task) {
  static constexpr void (*kReduce[3][3])(const Work&, int64_t) = {{reduce<1, 1>, reduce<1, 2>, reduce<1, 3>},
                                                                 {reduce<2, 1>, reduce<2, 2>, reduce<2, 3>},
                                                                 {reduce<3, 1>, reduce<3, 2>, reduce<3, 3>}};
  kReduce[parts_of(work.grad->b_type) - 1][parts_of(work.grad->a_type) - 1](work, task);
}

}  // namespace

const Isa amx = {"amx", kRows, kColumns, 512, kGroup, kSpan, INT64_MAX, kLength, panel_size, pack, reduce};

}  // namespace encore::cpu

#if defined(__clang__) && !defined(ENCORE_BASELINE)
#pragma clang attribute pop
#endif
#endif
#endif
