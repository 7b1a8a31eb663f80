// What becomes of finished tiles of G_n: squared, weighted, multiplied with directions, added up. Included by tile.h and
// amx.cpp, which define kWidth (floats in a vector register), kRows and kVectors (a tile is kRows by kVectors
// registers).

namespace encore::cpu {
namespace {

constexpr int64_t kColumns = kWidth * kVectors;
constexpr int64_t kTile = kRows * kColumns;
typedef float Vector __attribute__((vector_size(kWidth * 4)));
typedef float Unaligned __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

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

}  // namespace
}  // namespace encore::cpu
