// The tile registers of AMX, as this kernel uses them: eight of 16 rows by 16 words. Under ENCORE_BASELINE they are
// arrays, so that a test runs the kernel on any processor.

namespace encore::cpu {
namespace {

constexpr int64_t kSide = 16;             // rows of a tile register, and words in a row
constexpr int64_t kWords = kSide * kSide;  // 1 KB

#ifdef ENCORE_BASELINE

thread_local uint32_t registers[8][kSide][kSide];

struct Tiles {};

template <int kTo>
inline void clear() {
  __builtin_memset(registers[kTo], 0, sizeof registers[kTo]);
}

template <int kTo>
inline void load(const uint32_t* from) {
  __builtin_memcpy(registers[kTo], from, sizeof registers[kTo]);
}

template <int kFrom>
inline void store(float* to, int64_t stride) {
  for (int64_t r = 0; r < kSide; ++r) __builtin_memcpy(to + r * stride, registers[kFrom][r], kSide * sizeof(float));
}

// sum[r, c] += the products of left[r, k] and right[k, c], over k; a word is two numbers.
template <int kSum, int kLeft, int kRight>
inline void multiply_add() {
  const auto number = [](uint32_t word, int half) {
    const uint32_t bits = half == 0 ? word << 16 : word & 0xffff0000;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return __builtin_fabsf(value) < 0x1p-126f ? 0.0f : value;  // as the processor does
  };
  for (int64_t r = 0; r < kSide; ++r)
    for (int64_t c = 0; c < kSide; ++c) {
      float products[2] = {}, sum;
      for (int64_t k = 0; k < kSide; ++k)
        for (int half = 0; half < 2; ++half)
          products[half] += number(registers[kLeft][r][k], half) * number(registers[kRight][k][c], half);
      __builtin_memcpy(&sum, &registers[kSum][r][c], sizeof sum);
      sum += products[0] + products[1];
      __builtin_memcpy(&registers[kSum][r][c], &sum, sizeof sum);
    }
}

#else

// While it lives, this thread's tile registers are set up; afterwards they weigh nothing when threads are switched.
struct Tiles {
  Tiles() {
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shape = {1, 0, {}, {}, {}};
    for (int tile = 0; tile < 8; ++tile) {
      shape.row_bytes[tile] = kSide * sizeof(uint32_t);
      shape.rows[tile] = kSide;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Tiles() { __asm__ volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
};

template <int kTo>
inline void clear() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTo));
}

template <int kTo>
inline void load(const uint32_t* from) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(kSide * sizeof(uint32_t)), "i"(kTo) : "memory");
}

template <int kFrom>
inline void store(float* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * sizeof(float)), "i"(kFrom) : "memory");
}

template <int kSum, int kLeft, int kRight>
inline void multiply_add() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

#endif

}  // namespace
}  // namespace encore::cpu
