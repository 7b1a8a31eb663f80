// One tile of G_n: its products summed in registers, then reduced. Included by a source file for each instruction set,
// which defines ENCORE_ISA (the name), kWidth (floats in a vector register), kRows and kVectors (a tile is kRows by
// kVectors registers; all of them and kVectors + 1 more have to fit the register file), and opens a target region.
// Vectors are the compiler's own (GCC, clang), so that one text serves every processor. Nothing here may come out of a
// header of the standard library: a function that was inlined for AVX-512 could be the one that the linker keeps.

namespace encore::cpu {
namespace {

constexpr int64_t kColumns = kWidth * kVectors;
constexpr int64_t kTile = kRows * kColumns;
constexpr int64_t kPackRows = 4;  // more would share the few cache sets that rows of a wide matrix begin in
constexpr int64_t kAhead = 4;     // in so many last blocks of a group, the panel of A that comes next is fetched
typedef float Vector __attribute__((vector_size(kWidth * 4)));
typedef float Unaligned __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }

inline float widen(Bfloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float widen(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t shifted = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t exponent = shifted & 0x0f800000;
  const uint32_t rebased = shifted + (112u << 23) + (exponent == 0x0f800000 ? 112u << 23 : 0);  // inf and NaN stay so
  const float subnormal = from_bits(shifted + (113u << 23)) - from_bits(113u << 23);
  const float magnitude = exponent == 0 ? subnormal : from_bits(rebased);
  uint32_t bits;
  __builtin_memcpy(&bits, &magnitude, sizeof bits);
  return from_bits(bits | sign);
}

template <int64_t kCount, class Source>
inline void widen(const Source* from, float* to) {
  for (int64_t k = 0; k < kCount; ++k) to[k] = widen(from[k]);
}

template <int64_t kCount>
inline void widen(const float* from, float* to) {
  __builtin_memcpy(to, from, kCount * sizeof(float));
}

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

// Where a tile lies in [O, I], and how much of it: `rows` by `columns`.
struct Place {
  int64_t o, i;
  int64_t rows, columns;
};

// A tile's row as vectors, or, at the right edge, as single floats: the reductions below are written once for both.
struct Vectors {
  typedef Unaligned Lane;
  static int64_t count(const Place&) { return kVectors; }
};
struct Floats {
  typedef float Lane;
  static int64_t count(const Place& place) { return place.columns; }
};

// to[o, i] += the sum over tiles of factor * g, or factor * g * g.
template <bool kSquare, int kCount, class Row>
inline void add(float* to, int64_t stride, const float* factors, const float* tiles, const Place& place) {
  using Lane = typename Row::Lane;
  to += place.o * stride + place.i;
  for (int64_t r = 0; r < place.rows; ++r, to += stride, tiles += kColumns)
    for (int64_t c = 0; c < Row::count(place); ++c) {
      auto sum = reinterpret_cast<Lane*>(to)[c];
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) {
        const auto g = reinterpret_cast<const Lane*>(tiles + k * kTile)[c];
        sum += kSquare ? factors[k] * g * g : factors[k] * g;
      }
      reinterpret_cast<Lane*>(to)[c] = sum;
    }
}

// The same for the tiles of `count` samples whose factors are at `weights`; null is all ones.
template <bool kSquare, class Row>
inline void add(float* to, int64_t stride, const float* weights, int64_t count, const float* tiles,
                const Place& place) {
  float factors[kHeld];
  for (int64_t k = 0; k < count; ++k) factors[k] = weights == nullptr ? 1.0f : weights[k];
  if (count == kHeld)
    add<kSquare, kHeld, Row>(to, stride, factors, tiles, place);
  else
    for (int64_t k = 0; k < count; ++k) add<kSquare, 1, Row>(to, stride, factors + k, tiles + k * kTile, place);
}

// The sum of g * v; v is at row 0 and column 0 of the tile.
template <class Row>
inline double dot(const float* v, int64_t stride, const float* tile, const Place& place) {
  using Lane = typename Row::Lane;
  constexpr int64_t kLanes = kColumns * sizeof(float) / sizeof(Lane);
  Lane lanes[kLanes] = {};
  for (int64_t r = 0; r < place.rows; ++r, v += stride, tile += kColumns)
    for (int64_t c = 0; c < Row::count(place); ++c)
      lanes[c] += reinterpret_cast<const Lane*>(tile)[c] * reinterpret_cast<const Lane*>(v)[c];
  float floats[kColumns];
  __builtin_memcpy(floats, lanes, sizeof floats);
  double sum = 0;
  for (int64_t c = 0; c < kColumns; ++c) sum += floats[c];
  return sum;
}

// The tiles of one place, of `count` samples from the n-th on; `sums` are those of the first.
template <class Row>
inline void reduce_tiles(const LinearGrad& g, int64_t n, int64_t count, const float* tiles, const Place& place,
                         double* sums) {
  for (int64_t k = 0; k < count; ++k, sums += 1 + g.m) {
    const float* const tile = tiles + k * kTile;
    if (g.sq_norms != nullptr) sums[0] += dot<Row>(tile, kColumns, tile, place);
    for (int64_t m = 0; m < g.m; ++m)
      sums[1 + m] += dot<Row>(g.directions + (m * g.o + place.o) * g.i + place.i, g.i, tile, place);
  }
  if (g.total != nullptr)
    add<false, Row>(g.total, g.total_stride, g.weight == nullptr ? nullptr : g.weight + n, count, tiles, place);
  if (g.fisher != nullptr)
    add<true, Row>(g.fisher, g.fisher_stride, g.scale == nullptr ? nullptr : g.scale + n, count, tiles, place);
}

inline void prefetch(const float* matrix, int64_t stride, const Place& place) {
  if (matrix == nullptr) return;
  __asm__ volatile("");  // else GCC takes this for a function without effect, and drops the calls
  for (int64_t r = 0; r < place.rows; ++r) {
    const float* row = matrix + (place.o + r) * stride + place.i;
    for (int64_t c = 0; c < place.columns; c += 16) __builtin_prefetch(row + c, 0, 2);
  }
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

const Isa ENCORE_ISA = {ENCORE_ISA_NAME, kRows, kColumns, pack, reduce};

}  // namespace encore::cpu
