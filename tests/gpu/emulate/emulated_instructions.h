// csrc/cuda/ptx.h for the emulator: each instruction as the PTX manual defines it.
#pragma once

inline void __syncthreads() { emulator::meet(emulator::block().meeting); }

struct CUtensorMap {
  const uint16_t* data;
  uint64_t sizes[3], strides[2];  // elements; bytes
  uint32_t box[3];
};

namespace encore::cuda {

struct Bf16 {};
struct Fp16 {};

inline float widen(Bf16, uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float widen(Fp16, uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                     : std::bit_cast<float>((exponent + 112) << 23 | mantissa << 13);
  return bits & 0x8000 ? -size : size;
}

inline uint16_t narrow(Bf16, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest even
}

// Exact values only: the kernels turn nothing into fp16 but what was fp16.
inline uint16_t narrow(Fp16, float value) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float back = widen(Fp16{}, static_cast<uint16_t>(bits));
    if (back == value && std::signbit(back) == std::signbit(value)) return static_cast<uint16_t>(bits);
  }
  return 0x7e00;
}

inline void add(float* to, float value) { *to += value; }
inline void add_pair(float* to, float first, float second) {
  if (reinterpret_cast<uintptr_t>(to) % 8 != 0) emulator::fail("a pair misaligned");
  to[0] += first;
  to[1] += second;
}

inline float shuffle_xor(float value, int mask) {
  emulator::Warp& warp = emulator::warp();
  warp.value[threadIdx.x % 32] = value;
  emulator::meet(warp.meeting);
  const float other = warp.value[(threadIdx.x % 32) ^ static_cast<unsigned>(mask)];
  emulator::meet(warp.meeting);
  return other;
}

inline uint32_t dynamic_shared() { return emulator::kSharedBase; }

// ------------------------------------------------------------------------------------------------ groups

inline void later(std::function<void()> work) { emulator::current->open.push_back(std::move(work)); }

inline void commit() {
  emulator::current->groups.push_back(std::move(emulator::current->open));
  emulator::current->open.clear();
}

inline void wait(size_t pending) {
  auto& groups = emulator::current->groups;
  while (groups.size() > pending) {
    for (const auto& work : groups.front()) work();
    groups.erase(groups.begin());
  }
}

// ------------------------------------------------------------------------------------------------ sm_80

inline void copy_async(uint32_t to, const void* from, int bytes) {
  if (bytes < 0 || bytes > 16 || reinterpret_cast<uintptr_t>(from) % 16 != 0 || to % 16 != 0)
    emulator::fail("cp.async misaligned");
  emulator::Block* block = &emulator::block();
  const auto copy = [=] {
    unsigned char* target = &block->at<unsigned char>(to);
    block->at<unsigned char>(to + 15);
    std::memset(target, 0, 16);
    std::memcpy(target, from, static_cast<size_t>(bytes));
  };
  if (emulator::dice() % 2)
    later(copy);
  else
    copy();
}

inline void copy_commit() { commit(); }
template <int PENDING>
void copy_wait() {
  wait(PENDING);
}

inline void load_matrices(uint32_t (&to)[4], uint32_t address) {
  emulator::Warp& warp = emulator::warp();
  const unsigned lane = threadIdx.x % 32;
  warp.address[lane] = address;
  if (address % 16 != 0) emulator::fail("ldmatrix misaligned");
  emulator::meet(warp.meeting);
  for (unsigned matrix = 0; matrix < 4; ++matrix) {  // transposed: this lane gets column lane / 4 of rows 2·(lane % 4), + 1
    const unsigned row = matrix * 8 + lane % 4 * 2, column = lane / 4 * 2;
    const uint32_t low = emulator::block().at<uint16_t>(warp.address[row] + column);
    const uint32_t high = emulator::block().at<uint16_t>(warp.address[row + 1] + column);
    to[matrix] = low | high << 16;
  }
  emulator::meet(warp.meeting);
}

template <class E>
float half_of(E type, uint32_t pair, unsigned which) {
  return widen(type, static_cast<uint16_t>(which ? pair >> 16 : pair));
}

template <class E>
void mma(E type, float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Warp& warp = emulator::warp();
  const unsigned lane = threadIdx.x % 32;
  std::copy(a, a + 4, warp.a[lane]);
  warp.b[lane][0] = b0;
  warp.b[lane][1] = b1;
  emulator::meet(warp.meeting);
  float* const c[4] = {&c0, &c1, &c2, &c3};
  for (unsigned r = 0; r < 4; ++r) {
    const unsigned row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
    float sum = 0.f;
    for (unsigned k = 0; k < 16; ++k) {
      // A: row in register bit 0, k in bit 1; B: k in the register. Within: lane = 4·(row or column) + k % 8 / 2.
      const float left = half_of(type, warp.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
      const float right = half_of(type, warp.b[column * 4 + k % 8 / 2][k / 8], k % 2);
      sum += left * right;
    }
    *c[r] += sum;
  }
  emulator::meet(warp.meeting);
}

// ------------------------------------------------------------------------------------------------ sm_90a

inline int cluster_rank() { return emulator::current->rank; }
inline void cluster_sync() { emulator::meet(emulator::everyone); }

inline void barrier_init(uint32_t barrier, int arrivals) {
  emulator::block().at<uint64_t>(barrier) = 0;
  emulator::block().barriers[barrier] = {arrivals, arrivals, 0, 0};
}
inline void barrier_init_fence() {}

inline emulator::Barrier& barrier_at(emulator::Block& block, uint32_t barrier) {
  const auto found = block.barriers.find(barrier);
  if (found == block.barriers.end()) emulator::fail("no barrier there");
  return found->second;
}

inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  emulator::Barrier& at = barrier_at(emulator::block(), barrier);
  at.bytes += bytes;
  --at.pending;
  emulator::settle(at);
}

inline void barrier_arrive(uint32_t barrier, int rank) {
  emulator::Barrier& at = barrier_at(emulator::blocks.at(static_cast<size_t>(rank)), barrier);
  --at.pending;
  emulator::settle(at);
}

inline void barrier_wait(uint32_t barrier, int parity) {
  emulator::Barrier& at = barrier_at(emulator::block(), barrier);
  while (at.phase == parity) emulator::yield();
}

// Rows of 128 bytes; the address bits 4–6 are XORed with bits 7–9.
inline uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void load_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z, uint16_t ranks) {
  if (to % 1024 != 0) emulator::fail("a box misaligned");
  const CUtensorMap tensor = *map;
  for (size_t rank = 0; rank < emulator::blocks.size(); ++rank) {
    if (!(ranks >> rank & 1)) continue;
    emulator::Block* block = &emulator::blocks[rank];
    emulator::flights.push_back([=] {
      for (uint32_t row = 0; row < tensor.box[1]; ++row) {
        for (uint32_t column = 0; column < tensor.box[0]; ++column) {
          const uint64_t at[3] = {static_cast<uint64_t>(x) + column, static_cast<uint64_t>(y) + row,
                                  static_cast<uint64_t>(z)};
          const bool inside = at[0] < tensor.sizes[0] && at[1] < tensor.sizes[1] && at[2] < tensor.sizes[2];
          const uint64_t offset = at[0] + at[1] * (tensor.strides[0] / 2) + at[2] * (tensor.strides[1] / 2);
          block->at<uint16_t>(swizzle(to + row * 128 + column * 2)) = inside ? tensor.data[offset] : uint16_t{0};
        }
      }
      emulator::Barrier& at = barrier_at(*block, barrier);
      at.bytes -= tensor.box[0] * tensor.box[1] * 2;
      emulator::settle(at);
    });
  }
}

inline void load_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z) {
  load_box(to, map, barrier, x, y, z, static_cast<uint16_t>(1 << emulator::current->rank));
}

inline void wgmma_fence() {}
inline void wgmma_commit() { commit(); }
template <int PENDING>
void wgmma_wait() {
  wait(PENDING);
}
template <int R>
void wgmma_settle(float (&)[R]) {}
template <int>
void registers_grow() {}
template <int>
void registers_shrink() {}

// Element (mn, k) of an MN-major operand with 128-byte swizzle: ((8, 8, m), (8, k)) : ((1, 8, LBO), (64, SBO)).
template <class E>
float operand(E type, emulator::Block& block, uint64_t descriptor, uint32_t mn, uint32_t k) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) emulator::fail("not the 128-byte swizzle");
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t address = start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2;
  return widen(type, block.at<uint16_t>(swizzle(address)));
}

template <class E, int R>
void wgmma(E type, float (&c)[R], uint64_t first, uint64_t second, int accumulate) {
  emulator::Block* block = &emulator::block();
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  float* const out = c;
  later([=] {
    float rows[2][16], column[16];  // each element is read once, for all products that it is in
    for (uint32_t half = 0; half < 2; ++half)
      for (uint32_t k = 0; k < 16; ++k)
        rows[half][k] = operand(type, *block, first, warp * 16 + lane / 4 + half * 8, k);
    for (uint32_t pair = 0; pair < R / 2; ++pair) {
      for (uint32_t k = 0; k < 16; ++k)
        column[k] = operand(type, *block, second, pair / 2 * 8 + lane % 4 * 2 + pair % 2, k);
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t r = pair / 2 * 4 + half * 2 + pair % 2;
        float sum = accumulate ? out[r] : 0.f;
        for (uint32_t k = 0; k < 16; ++k) sum += rows[half][k] * column[k];
        out[r] = sum;
      }
    }
  });
}

}  // namespace encore::cuda
