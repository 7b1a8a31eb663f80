// Eight tile registers of 16 rows by 32 bfloat16 numbers; four of them hold the tile.
//
// A float32 is the exact sum of three bfloat16 numbers, of 8 bits each: high, middle and low. Of the nine products of
// such parts six are taken; the other three are below what float32 rounds away. One instruction does 8192 of them in
// sixteen cycles, so six take a third of the time that float32 needs. A bfloat16 operand has one part, a float16 two.
//
// The products take what is below 2^-126 for zero. So each column of A and B is first scaled by a power of two, to a
// largest number between 1 and 2; the tiles are scaled back.
#include "linear_grad.h"

#ifdef __x86_64__
#if !defined(ENCORE_BASELINE) && !__has_include(<amxtileintrin.h>)  // GCC 10 and older: AVX-512 serves
const encore::cpu::Isa encore::cpu::amx = {"amx", 32, 32, 1, 1, 0, 0, nullptr, nullptr, nullptr};
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

namespace encore::cpu {
namespace {

constexpr int64_t kStep = 2 * kSide;  // positions that a product of tile registers sums up; and columns of a panel
constexpr int64_t kStretch = 4;       // steps at a stretch: so much of a panel of A stays in the L1 cache
constexpr int64_t kLength = kStretch * kStep;
constexpr int64_t kGroup = 8, kSpan = 8;  // of so many tiles a stretch of both operands stays in the L2 cache
constexpr int64_t kMost = 32;             // panels packed together, so that what is looked at first stays near
constexpr int64_t kLook = 8;              // rows looked at together
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

constexpr int64_t parts_of(DType type) {
  return type == DType::float32 ? 3 : type == DType::bfloat16 ? 1 : 2;
}

int64_t steps_of(int64_t length) { return (length + kStep - 1) / kStep; }

// Words of two positions each, [steps, parts, 2, 16, 16], for 32 columns; of a stretch, with the columns' exponents.
template <int64_t kParts>
constexpr int64_t kStepSize = kParts * 2 * kWords;
template <int64_t kParts>
constexpr int64_t kStretchSize = kStretch * kStepSize<kParts> + kStep;

// A panel: [stretches] of these, of which the last is as short as it may be.
int64_t panel_size(DType type, int64_t length, int64_t width) {
  return steps_of(length) * parts_of(type) * 2 * kWords + (length + kLength - 1) / kLength * width;
}

// ------------------------------------------------------------------------------------------------------------ packing

// Sixteen numbers of a row, of which `left` are there; all of them where they are whole.
template <bool kWhole, class Source>
inline Vector read(const Source* from, int64_t left) {
  float numbers[kWidth];
  if (kWhole)
    widen<kWidth>(from, numbers);
  else
    for (int64_t k = 0; k < kWidth; ++k) numbers[k] = k < left ? widen(from[k]) : 0.0f;
  Vector value;
  __builtin_memcpy(&value, numbers, sizeof value);
  return value;
}

// The 16 by 16 words of a register, rows for columns.
inline void transpose(const Words* from, uint32_t* to) {
#ifdef ENCORE_BASELINE
  for (int64_t r = 0; r < kSide; ++r)
    for (int64_t c = 0; c < kSide; ++c) to[c * kSide + r] = from[r][c];
#else
  __m512i x[kSide], y[kSide];
#pragma GCC unroll 8
  for (int r = 0; r < kSide; r += 2) {
    const __m512i row = _mm512_loadu_si512(from + r), next = _mm512_loadu_si512(from + r + 1);
    x[r] = _mm512_unpacklo_epi32(row, next);
    x[r + 1] = _mm512_unpackhi_epi32(row, next);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kSide; r += 4) {  // y[r + c]: column 4 l + c of rows r to r + 3, in lane l
    y[r] = _mm512_unpacklo_epi64(x[r], x[r + 2]);
    y[r + 1] = _mm512_unpackhi_epi64(x[r], x[r + 2]);
    y[r + 2] = _mm512_unpacklo_epi64(x[r + 1], x[r + 3]);
    y[r + 3] = _mm512_unpackhi_epi64(x[r + 1], x[r + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i lower_even = _mm512_shuffle_i32x4(y[c], y[4 + c], 0x88);  // lanes 0 and 2 of rows 0 to 7
    const __m512i upper_even = _mm512_shuffle_i32x4(y[8 + c], y[12 + c], 0x88);
    const __m512i lower_odd = _mm512_shuffle_i32x4(y[c], y[4 + c], 0xdd);
    const __m512i upper_odd = _mm512_shuffle_i32x4(y[8 + c], y[12 + c], 0xdd);
    _mm512_storeu_si512(to + c * kSide, _mm512_shuffle_i32x4(lower_even, upper_even, 0x88));
    _mm512_storeu_si512(to + (4 + c) * kSide, _mm512_shuffle_i32x4(lower_odd, upper_odd, 0x88));
    _mm512_storeu_si512(to + (8 + c) * kSide, _mm512_shuffle_i32x4(lower_even, upper_even, 0xdd));
    _mm512_storeu_si512(to + (12 + c) * kSide, _mm512_shuffle_i32x4(lower_odd, upper_odd, 0xdd));
  }
#endif
}

// `count` panels of a stretch of a matrix [length, size]; as left operand of the products (each row of a register a
// column of the matrix) or as right one (each row two positions).
template <bool kLeft, bool kWhole, int64_t kParts, class Source>
void pack_panels(const Source* rows, int64_t stride, int64_t length, int64_t size, int64_t count, int64_t panel,
                 float* packed) {
  Ints largest[2 * kMost] = {};
  for (int64_t t = 0; t < length; t += kLook)
    for (int64_t v = 0; v < 2 * count; ++v) {
      const int64_t most = length - t < kLook ? length - t : kLook;
      const Source* row = rows + t * stride + v * kWidth;
      for (int64_t k = 0; k < most; ++k, row += stride) {
        const Ints bits = (Ints)read<kWhole>(row, size - v * kWidth) & 0x7fffffff;
        largest[v] = bits > largest[v] ? bits : largest[v];
      }
    }
  Vector factors[2 * kMost];
  const int64_t steps = steps_of(length);
  for (int64_t v = 0; v < 2 * count; ++v) {
    Ints exponents = (largest[v] >> 23) - 127;
    exponents = exponents < -126 ? Ints{} - 126 : exponents > 126 ? Ints{} + 126 : exponents;  // the factor is normal
    factors[v] = (Vector)((127 - exponents) << 23);
    const Vector floats = __builtin_convertvector(exponents, Vector);
    __builtin_memcpy(packed + v / 2 * panel + steps * kStepSize<kParts> + v % 2 * kWidth, &floats, sizeof floats);
  }
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t v = 0; v < 2 * count; ++v) {
      uint32_t* const to = (uint32_t*)(packed + v / 2 * panel + step * kStepSize<kParts>) + v % 2 * kWords;
      const Source* row = rows + step * kStep * stride + v * kWidth;
      const int64_t there = length - step * kStep, left = size - v * kWidth;
      const Vector factor = factors[v];
      Words words[kParts][kSide];
      for (int64_t k = 0; k < kSide; ++k, row += 2 * stride) {
        Vector even = 2 * k < there ? read<kWhole>(row, left) * factor : Vector{};
        Vector odd = 2 * k + 1 < there ? read<kWhole>(row + stride, left) * factor : Vector{};
#pragma GCC unroll 3
        for (int64_t part = 0; part < kParts; ++part) {
          const Words a = (Words)even & 0xffff0000u, b = (Words)odd & 0xffff0000u, both = a >> 16 | b;
          if (kLeft)
            words[part][k] = both;
          else
            __builtin_memcpy(to + 2 * part * kWords + k * kSide, &both, sizeof both);
          even -= (Vector)a;  // an infinity becomes NaN
          odd -= (Vector)b;
        }
      }
      for (int64_t part = 0; kLeft && part < kParts; ++part) transpose(words[part], to + 2 * part * kWords);
    }
}

// The same for panels from the `first` on, of the stretch of n that begins at t.
template <bool kLeft, int64_t kParts, class Source>
void pack_panels(const Source* matrix, int64_t stride, int64_t t, int64_t length, int64_t size, int64_t first,
                 int64_t count, int64_t panel, float* packed) {
  const int64_t left = size - first * kStep;
  const auto pack_them = left >= count * kStep ? pack_panels<kLeft, true, kParts, Source>
                                               : pack_panels<kLeft, false, kParts, Source>;
  pack_them(matrix + t * stride + first * kStep, stride, length - t < kLength ? length - t : kLength, left, count, panel,
            packed + first * panel + t / kLength * kStretchSize<kParts>);
}

template <bool kLeft>
void pack_panels(const void* from, DType type, int64_t offset, int64_t stride, int64_t t, int64_t length, int64_t size,
                 int64_t first, int64_t count, int64_t panel, float* packed) {
  if (type == DType::float32)
    pack_panels<kLeft, 3>((const float*)from + offset, stride, t, length, size, first, count, panel, packed);
  else if (type == DType::bfloat16)
    pack_panels<kLeft, 1>((const Bfloat16*)from + offset, stride, t, length, size, first, count, panel, packed);
  else
    pack_panels<kLeft, 2>((const Float16*)from + offset, stride, t, length, size, first, count, panel, packed);
}

void pack(const Work& work, int64_t begin, int64_t end) {
  const LinearGrad& g = *work.grad;
  const int64_t a_panel = panel_size(g.a_type, g.t, kColumns), b_panel = panel_size(g.b_type, g.t, kRows);
  const int64_t panels = work.panels + work.blocks, stretches = (g.t + kLength - 1) / kLength;
  while (begin < end) {
    const int64_t s = begin / (stretches * panels), t = begin / panels % stretches * kLength, at = begin % panels;
    const int64_t n = work.first + s, first = at < work.panels ? at : at - work.panels;
    const int64_t whole = (at < work.panels ? g.i : g.o) / kStep - first, there = whole > 0 ? whole : 1;
    const int64_t wanted = end - begin < there ? end - begin : there, count = wanted < kMost ? wanted : kMost;
      if (at < work.panels)
      pack_panels<false>(g.a, g.a_type, n * g.a_stride_n, g.a_stride_t, t, g.t, g.i, first, count, a_panel,
                         work.a + s * work.panels * a_panel);
    else
      pack_panels<true>(g.b, g.b_type, n * g.b_stride_n, g.b_stride_t, t, g.t, g.o, first, count, b_panel,
                        work.b + s * work.blocks * b_panel);
    begin += count;
  }
}

// ----------------------------------------------------------------------------------------------------------- products

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
  int64_t s, step, panel, block;
  const float *products, *exponents_a, *exponents_b;
  int64_t left;
};

alignas(64) thread_local float tiles[kSpan * kGroup][kTile];

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
  const auto finish = [&](int64_t most) {
    if (before.left == 0) return;
    const int64_t row = kRows - before.left, rows = most < before.left ? most : before.left;
    float* const tile = tiles[before.panel * blocks + before.block] + row * kColumns;
    collect(tile, before.products + row * kColumns, rows, before.step > 0, before.exponents_b + row, before.exponents_a);
    before.left -= rows;
    const Place of_rows = place(before.panel, before.block, row, rows);
    if (before.step + kStretch < steps || of_rows.rows <= 0) return;
    const auto reduce_rows = of_rows.columns == kColumns ? reduce_tiles<Vectors> : reduce_tiles<Floats>;
    reduce_rows(g, work.first + before.s, 1, tile, of_rows, sums + before.s * (1 + g.m));
  };

  const Tiles registers;
  const float* const all_a = work.a + first_panel * a_panel;
  const float* const all_b = work.b + first_block * b_panel;
  int64_t turn = 0;
  for (int64_t s = 0; s < work.samples; ++s)
    for (int64_t stretch = 0; stretch < stretches; ++stretch)
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t step = stretch * kStretch, count = steps - step < kStretch ? steps - step : kStretch;
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
            if (stretch + 1 == stretches) {  // what the tile will be added to
              const Place of_rows = place(panel, block, k * rows, rows);
              prefetch(g.fisher, g.fisher_stride, of_rows);
              prefetch(g.total, g.total_stride, of_rows);
              for (int64_t m = 0; m < g.m; ++m) prefetch(g.directions + m * g.o * g.i, g.i, of_rows);
            }
            finish(rows);
          });
          before = {s, step, panel, block, to, a + count * kStepSize<kPartsA>, b + count * kStepSize<kPartsB>, kRows};
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

const Isa amx = {"amx", kRows, kColumns, kGroup, kSpan, INT64_MAX, kLength, panel_size, pack, reduce};

}  // namespace encore::cpu

#if defined(__clang__) && !defined(ENCORE_BASELINE)
#pragma clang attribute pop
#endif
#endif
#endif
