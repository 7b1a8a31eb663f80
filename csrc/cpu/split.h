// How operands become what the tile registers of AMX multiply. Included by amx.cpp, inside its target region.
//
// A float32 is the exact sum of three bfloat16 numbers, of 8 bits each: high, middle and low. A bfloat16 has one such
// part, a float16 two. The products take what is below 2^-126 for zero, so each column of a stretch is first scaled by
// a power of two, to a largest number between 1 and 2; the tiles are scaled back.

namespace encore::cpu {
namespace {

constexpr int64_t kStep = 2 * kSide;  // positions that a product of tile registers sums up; and columns of a panel
constexpr int64_t kStretch = 4;       // steps at a stretch: so much of a panel of A stays in the L1 cache
constexpr int64_t kLength = kStretch * kStep;
constexpr int64_t kMost = 32;         // panels packed together, so that what is looked at first stays near
constexpr int64_t kLook = 8;          // rows looked at together
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

// The same for panels from the `first` on, of the stretch that begins at t.
template <bool kLeft, int64_t kParts, class Source>
void pack_panels(const Source* matrix, int64_t stride, int64_t t, int64_t length, int64_t size, int64_t first,
                 int64_t count, int64_t panel, float* packed) {
  const int64_t left = size - first * kStep, there = length - t < kLength ? length - t : kLength;
  const auto pack_them = left >= count * kStep ? pack_panels<kLeft, true, kParts, Source>
                                               : pack_panels<kLeft, false, kParts, Source>;
  pack_them(matrix + t * stride + first * kStep, stride, there, left, count, panel,
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

}  // namespace
}  // namespace encore::cpu
