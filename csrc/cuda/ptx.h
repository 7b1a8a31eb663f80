// One wrapper an instruction. Shared memory is addressed by 32-bit shared-window addresses throughout.
// tests/gpu/emulate gives the same functions for the CPU, so that the kernels can be run without a GPU.
#pragma once

#include <cstdint>

#ifdef ENCORE_EMULATED
#include <emulated_ptx.h>
#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ENCORE_DEVICE __device__ __forceinline__

namespace encore::cuda {

struct Bf16 {};
struct Fp16 {};

ENCORE_DEVICE float widen(Bf16, uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
ENCORE_DEVICE float widen(Fp16, uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
ENCORE_DEVICE uint16_t narrow(Bf16, float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
ENCORE_DEVICE uint16_t narrow(Fp16, float value) { return __half_as_ushort(__float2half_rn(value)); }

ENCORE_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Fire and forget: no thread waits for memory. Subnormal results become zero.
ENCORE_DEVICE void add(float* to, float value) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
}

// `to` is 8-byte aligned.
ENCORE_DEVICE void add_pair(float* to, float first, float second) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(first), "f"(second) : "memory");
#else
  add(to, first);
  add(to + 1, second);
#endif
}

extern __shared__ __align__(1024) unsigned char encore_dynamic_shared[];

ENCORE_DEVICE uint32_t dynamic_shared() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(encore_dynamic_shared));
}

// ------------------------------------------------------------------------------------------------ sm_80

// 16 bytes to shared memory; of the source `bytes` are read, and the rest is zero.
ENCORE_DEVICE void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

ENCORE_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
ENCORE_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8×8 matrices of 16-bit elements, transposed; lane l gives the address of row l % 8 of matrix l / 8.
ENCORE_DEVICE void load_matrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

#define ENCORE_MMA(TYPE)                                                                        \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                           \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
               : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

ENCORE_DEVICE void mma(Bf16, float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                       uint32_t b1) {
  ENCORE_MMA("bf16");
}
ENCORE_DEVICE void mma(Fp16, float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                       uint32_t b1) {
  ENCORE_MMA("f16");
}
#undef ENCORE_MMA

// ------------------------------------------------------------------------------------------------ sm_90a

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

ENCORE_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

ENCORE_DEVICE int cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}

ENCORE_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

ENCORE_DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

ENCORE_DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and lets the phase end only when `bytes` have come too.
ENCORE_DEVICE void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the barrier of the same address in block `rank` of the cluster.
ENCORE_DEVICE void barrier_arrive(uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Acquires at cluster scope: those who arrive may be of the other block.
ENCORE_DEVICE void barrier_wait(uint32_t barrier, int parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// A box of the tensor at (x, y, z), zeros beyond its edges, counted at `barrier`.
ENCORE_DEVICE void load_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
      ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same to every block in `blocks` (bit by rank), at the same shared addresses.
ENCORE_DEVICE void load_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z,
                            uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(blocks)
      : "memory");
}

ENCORE_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ENCORE_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
ENCORE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The compiler knows nothing of the wait: without this it might read an accumulator above it.
template <int R>
ENCORE_DEVICE void wgmma_settle(float (&c)[R]) {
#pragma unroll
  for (int k = 0; k < R; ++k) asm volatile("" : "+f"(c[k])::"memory");
}

template <int REGISTERS>
ENCORE_DEVICE void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
ENCORE_DEVICE void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// c [64, N] (+)= (64×16 of the first operand) · (16×N of the second), both MN-major ("trans" 1) in shared memory.
#define ENCORE_C8(i) \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define ENCORE_C64 \
  ENCORE_C8(0), ENCORE_C8(8), ENCORE_C8(16), ENCORE_C8(24), ENCORE_C8(32), ENCORE_C8(40), ENCORE_C8(48), ENCORE_C8(56)
#define ENCORE_R32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
#define ENCORE_R64 \
  ENCORE_R32       \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define ENCORE_R96 \
  ENCORE_R64       \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"

#define ENCORE_WGMMA_128(TYPE)                                                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE \
               " {" ENCORE_R64 "}, %64, %65, p, 1, 1, 1, 1;\n}"                                                     \
               : ENCORE_C64                                                                                         \
               : "l"(first), "l"(second), "r"(accumulate))
#define ENCORE_WGMMA_192(TYPE)                                                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\nwgmma.mma_async.sync.aligned.m64n192k16.f32." TYPE "." TYPE \
               " {" ENCORE_R96 "}, %96, %97, p, 1, 1, 1, 1;\n}"                                                     \
               : ENCORE_C64, ENCORE_C8(64), ENCORE_C8(72), ENCORE_C8(80), ENCORE_C8(88)                             \
               : "l"(first), "l"(second), "r"(accumulate))

ENCORE_DEVICE void wgmma(Bf16, float (&c)[64], uint64_t first, uint64_t second, int accumulate) {
  ENCORE_WGMMA_128("bf16");
}
ENCORE_DEVICE void wgmma(Fp16, float (&c)[64], uint64_t first, uint64_t second, int accumulate) {
  ENCORE_WGMMA_128("f16");
}
ENCORE_DEVICE void wgmma(Bf16, float (&c)[96], uint64_t first, uint64_t second, int accumulate) {
  ENCORE_WGMMA_192("bf16");
}
ENCORE_DEVICE void wgmma(Fp16, float (&c)[96], uint64_t first, uint64_t second, int accumulate) {
  ENCORE_WGMMA_192("f16");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace encore::cuda

#endif  // ENCORE_EMULATED
