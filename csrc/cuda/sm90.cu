// Hopper: tensor maps (TMA) feed a ring of stages, one thread loads, two warpgroups multiply with wgmma.
//
// A block owns a tile of 128 output × COLUMNS input channels. A k-step is 64 rows of t; both operands come as they lie
// in memory, channels contiguous ("MN-major", which wgmma takes for 16-bit types), in boxes of 64 channels × 64 rows
// with the 128-byte swizzle. Rows beyond T and channels beyond the edge arrive as zeros. Each warpgroup keeps 64 rows
// of the tile: the product of the running sample, and the sums over samples. The loader runs ahead across samples and
// tiles, so the ring never drains. In a cluster of two the blocks take tiles that lie below one another: they share
// the inputs' boxes, and each loads every other one for both.
#include <cuda.h>

#include "kernels.h"
#include "tiles.h"

namespace encore::cuda {
namespace {

constexpr int kDepth = 64;                          // rows of t in a stage
constexpr uint32_t kBox = 64 * kDepth * 2;          // bytes of a box
constexpr int kThreads = 384;                       // two warpgroups that multiply, one that loads

template <int COLUMNS>
struct Ring {
  static constexpr int kStages = COLUMNS == 192 ? 5 : 6;
  static constexpr uint32_t kGrads = kTileRows / 64 * kBox;
  static constexpr uint32_t kStage = kGrads + COLUMNS / 64 * kBox;
  static constexpr uint32_t kBytes = kStages * kStage + kStages * 16 + 1024;  // 1024 to align the start

  uint32_t start = (dynamic_shared() + 1023) & ~1023u;  // the swizzle repeats every 1024 bytes
  int stage = 0, parity = 0;

  ENCORE_DEVICE uint32_t grads() const { return start + stage * kStage; }
  ENCORE_DEVICE uint32_t inputs() const { return grads() + kGrads; }
  ENCORE_DEVICE uint32_t full(int at) const { return start + kStages * kStage + at * 8; }
  ENCORE_DEVICE uint32_t empty(int at) const { return full(at) + kStages * 8; }
  ENCORE_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ENCORE_EMULATED)

// The shared-memory matrix descriptor (PTX, 9.7.15.5.1): start, leading offset (from one block of 64 channels to the
// next) and stride offset (from 8 rows to the next 8), in units of 16 bytes; 1 at bit 62 is the 128-byte swizzle.
ENCORE_DEVICE uint64_t descriptor(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(kBox >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

template <int COLUMNS>
ENCORE_DEVICE void load(const CUtensorMap* inputs, const CUtensorMap* grads, const Job& job, Ring<COLUMNS> ring,
                        int worker, int rank) {
  const int steps = (job.t + kDepth - 1) / kDepth;
  const int samples = job.plan.samples;
  ring.parity = 1;  // a fresh barrier counts as if the phase before had ended: every stage is free
  Segment part;
  for (int index = 0; segment(job.plan, worker, index, part); ++index) {
    int o, i;
    place(job.plan, part.tile, o, i);
    const int row = (o * job.blocks + rank) * kTileRows, column = i * COLUMNS;
    for (int n = part.first; n < part.last; ++n) {
      for (int pass = 0; pass < passes(job.planes_a, job.planes_b); ++pass) {
        const int layer_a = plane_a(pass, job.planes_a) * samples + n, layer_b = plane_b(pass, job.planes_a) * samples + n;
        for (int step = 0; step < steps; ++step, ring.advance()) {
          const uint32_t full = ring.full(ring.stage);
          barrier_wait(ring.empty(ring.stage), ring.parity);
          barrier_expect(full, Ring<COLUMNS>::kStage);
#pragma unroll
          for (int box = 0; box < kTileRows / 64; ++box)
            load_box(ring.grads() + box * kBox, grads, full, row + box * 64, step * kDepth, layer_b);
#pragma unroll
          for (int box = 0; box < COLUMNS / 64; ++box) {
            const uint32_t to = ring.inputs() + box * kBox;
            if (job.blocks == 1)
              load_box(to, inputs, full, column + box * 64, step * kDepth, layer_a);
            else if (box % 2 == rank)
              load_box(to, inputs, full, column + box * 64, step * kDepth, layer_a, 3);
          }
        }
      }
    }
  }
}

template <class E, int COLUMNS, bool TOTAL>
ENCORE_DEVICE void multiply(const Job& job, Ring<COLUMNS> ring, int worker, int rank) {
  constexpr int R = COLUMNS / 2, kAcross = COLUMNS / 8;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Fragment<kAcross> at(warp * 16, 0, lane);  // warps 0–3 are the first warpgroup: rows 0–63
  const int steps = (job.t + kDepth - 1) / kDepth * passes(job.planes_a, job.planes_b);
  float g[R];
  Sums<R, kAcross, COLUMNS, TOTAL> sums;

  Segment part;
  for (int index = 0; segment(job.plan, worker, index, part); ++index) {
    int o, i;
    place(job.plan, part.tile, o, i);
    o = o * job.blocks + rank;
    sums.clear();
    for (int n = part.first; n < part.last; ++n) {
      const float scale = job.scale == nullptr ? 1.f : job.scale[n];  // read early: they are needed after the loop
      const float weight = job.weight == nullptr ? 1.f : job.weight[n];
      int previous = 0;
      for (int step = 0; step < steps; ++step) {
        barrier_wait(ring.full(ring.stage), ring.parity);
        const uint32_t grads = ring.grads() + group * kBox, inputs = ring.inputs();
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kDepth / 16; ++k)  // 16 rows of 128 bytes
          wgmma(E{}, g, descriptor(grads + k * 2048), descriptor(inputs + k * 2048), step > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the step before is done with its stage
        if (step > 0 && lane < job.blocks) barrier_arrive(ring.empty(previous), lane);
        previous = ring.stage;
        ring.advance();
      }
      wgmma_wait<0>();
      wgmma_settle(g);
      if (lane < job.blocks) barrier_arrive(ring.empty(previous), lane);
      sums.add_sample(g, scale, weight);
      if (job.partials != nullptr) write_partials<R, kAcross, COLUMNS>(job, g, at, n, part.tile, o, i);
    }
    sums.flush(job, at, o, i, part.slot < 0 ? -1 : part.slot * job.blocks + rank);
  }
}

#endif

template <class E, int COLUMNS, bool TOTAL>
__global__ void __launch_bounds__(kThreads, 1)
    linear_grad_sm90(const __grid_constant__ CUtensorMap inputs, const __grid_constant__ CUtensorMap grads,
                     const __grid_constant__ Job job) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ENCORE_EMULATED)
  const Ring<COLUMNS> ring;
  const int rank = cluster_rank(), worker = static_cast<int>(blockIdx.x) / job.blocks;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Ring<COLUMNS>::kStages; ++stage) {
      barrier_init(ring.full(stage), 1);
      barrier_init(ring.empty(stage), kWarps * job.blocks);  // every warp that reads it, of either block
    }
    barrier_init_fence();
  }
  cluster_sync();  // before that the other block may not load into, or arrive at, this one
  if (threadIdx.x >= 256) {
    registers_shrink<40>();
    if (threadIdx.x == 256) load(&inputs, &grads, job, ring, worker, rank);
  } else {
    registers_grow<232>();
    multiply<E, COLUMNS, TOTAL>(job, ring, worker, rank);
  }
  cluster_sync();  // a block may not end while the other still arrives at its barriers
#endif
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// From the driver that is loaded: nothing links against libcuda.
const char* encoder(Encode& out) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (found != cudaDriverEntryPointSuccess || function == nullptr) return "the driver has no cuTensorMapEncodeTiled";
  out = reinterpret_cast<Encode>(function);
  return nullptr;
}

const char* encode(Encode encoder, CUtensorMap& map, const Operand& x, int t, int64_t layers, bool fp16) {
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(x.channels), static_cast<cuuint64_t>(t),
                               static_cast<cuuint64_t>(layers)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(x.stride_t) * 2, static_cast<cuuint64_t>(x.stride_n) * 2};
  const cuuint32_t box[3] = {64, kDepth, 1}, steps[3] = {1, 1, 1};
  const CUresult error = encoder(&map, fp16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
                                 const_cast<void*>(x.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refused an operand";
}

template <class E, int COLUMNS, bool TOTAL>
const char* start(const CUtensorMap& inputs, const CUtensorMap& grads, const Job& job, cudaStream_t stream) {
  return launch(linear_grad_sm90<E, COLUMNS, TOTAL>, static_cast<unsigned>(job.plan.workers * job.blocks), kThreads,
                static_cast<unsigned>(job.blocks), Ring<COLUMNS>::kBytes, stream, inputs, grads, job);
}

}  // namespace

int sm90_shared_bytes(int columns) {
  return static_cast<int>(columns == 192 ? Ring<192>::kBytes : Ring<128>::kBytes);
}

const char* run_sm90(const Job& job, const Operand& inputs, const Operand& grads, bool fp16, int columns, bool total,
                     cudaStream_t stream) {
  Encode encode_tiled = nullptr;
  CUtensorMap map_a, map_b;
  const char* error = encoder(encode_tiled);
  if (error == nullptr) error = encode(encode_tiled, map_a, inputs, job.t, int64_t{job.planes_a} * job.plan.samples, fp16);
  if (error == nullptr) error = encode(encode_tiled, map_b, grads, job.t, int64_t{job.planes_b} * job.plan.samples, fp16);
  if (error != nullptr) return error;
  const auto kernel = fp16 ? (total            ? start<Fp16, 128, true>
                              : columns == 192 ? start<Fp16, 192, false>
                                               : start<Fp16, 128, false>)
                           : (total            ? start<Bf16, 128, true>
                              : columns == 192 ? start<Bf16, 192, false>
                                               : start<Bf16, 128, false>);
  return kernel(map_a, map_b, job, stream);
}

}  // namespace encore::cuda
