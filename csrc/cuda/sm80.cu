// Ampere and everything since: cp.async feeds a ring of stages, eight warps multiply with mma.sync.
//
// A block owns a tile of 128 output × 128 input channels, a warp 64 × 32 of it. A stage holds 32 rows of t of either
// operand as they lie in memory, channels contiguous, rows of 256 bytes; ldmatrix transposes them into fragments. The
// 16-byte chunks of a row are XORed with its number, so that the eight rows of a matrix fall into different banks. The
// thread that multiplies also loads, three steps ahead and across samples and tiles: the ring never drains.
#include "kernels.h"
#include "tiles.h"

namespace encore::cuda {
namespace {

constexpr int kDepth = 32, kStages = 4, kThreads = 256, kColumns = 128;
constexpr uint32_t kOperand = kDepth * 256, kStage = 2 * kOperand;  // grads, then inputs
static_assert(kStages * kStage == kSm80Shared);

// Where the channels [8 * chunk, 8 * chunk + 8) of a row lie in a stage.
ENCORE_DEVICE uint32_t at(int row, int chunk) { return static_cast<uint32_t>(row * 256 + (chunk ^ (row & 7)) * 16); }

// The k-steps of a worker in order: (tile, sample, pass, step).
struct Cursor {
  const Job& job;
  int steps;
  Segment part{};
  int index = -1, n = 0, pass = 0, step = 0, o = 0, i = 0;
  bool live = true;

  ENCORE_DEVICE explicit Cursor(const Job& of) : job(of), steps((of.t + kDepth - 1) / kDepth) { next_part(); }

  ENCORE_DEVICE void next_part() {
    live = segment(job.plan, static_cast<int>(blockIdx.x), ++index, part);
    if (!live) return;
    place(job.plan, part.tile, o, i);
    n = part.first;
  }

  ENCORE_DEVICE void advance() {
    if (++step < steps) return;
    step = 0;
    if (++pass < passes(job.planes_a, job.planes_b)) return;
    pass = 0;
    if (++n == part.last) next_part();
  }
};

// This thread's share of an operand's 32 rows × 128 channels: two chunks. Zeros beyond T and beyond the last channel.
ENCORE_DEVICE void load_rows(uint32_t to, const Operand& x, int64_t layer, int t, int first_row, int first_channel) {
  const int chunk = threadIdx.x % 16, channel = first_channel + chunk * 8;
  const int left = (x.channels - channel) * 2;
#pragma unroll
  for (int row = threadIdx.x / 16; row < kDepth; row += kThreads / 16) {
    const int time = first_row + row;
    const int bytes = time < t && left > 0 ? (left < 16 ? left : 16) : 0;
    const int64_t offset = bytes > 0 ? layer * x.stride_n + time * x.stride_t + channel : 0;
    copy_async(to + at(row, chunk), static_cast<const uint16_t*>(x.data) + offset, bytes);
  }
}

ENCORE_DEVICE void load_stage(uint32_t stage, const Cursor& next, const Operand& inputs, const Operand& grads) {
  const Job& job = next.job;
  const int row = next.step * kDepth;
  const int64_t layer_a = int64_t{plane_a(next.pass, job.planes_a)} * job.plan.samples + next.n;
  const int64_t layer_b = int64_t{plane_b(next.pass, job.planes_a)} * job.plan.samples + next.n;
  load_rows(stage, grads, layer_b, job.t, row, next.o * kTileRows);
  load_rows(stage + kOperand, inputs, layer_a, job.t, row, next.i * kColumns);
}

// g (64 × 32 of the warp) += the product over the 32 rows of a stage.
template <class E>
ENCORE_DEVICE void multiply(float (&g)[64], uint32_t stage, int warp_row, int warp_column, int lane) {
  const int in_eight = lane % 8, low = lane / 8 % 2, high = lane / 16;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t b[2][4];  // four 8-column blocks of the inputs: k 0–7 and k 8–15 of one, then of the next
#pragma unroll
    for (int pair = 0; pair < 2; ++pair)
      load_matrices(b[pair], stage + kOperand + at(k + low * 8 + in_eight, warp_column / 8 + pair * 2 + high));
#pragma unroll
    for (int block = 0; block < 4; ++block) {  // of 16 rows
      uint32_t a[4];  // channels 0–7 and 8–15 at k 0–7, then both at k 8–15
      load_matrices(a, stage + at(k + high * 8 + in_eight, warp_row / 8 + block * 2 + low));
#pragma unroll
      for (int across = 0; across < 4; ++across) {
        float* c = g + (block * 4 + across) * 4;
        const uint32_t(&pair)[4] = b[across / 2];
        mma(E{}, c[0], c[1], c[2], c[3], a, pair[across % 2 * 2], pair[across % 2 * 2 + 1]);
      }
    }
  }
}

template <class E, bool TOTAL>
__global__ void __launch_bounds__(kThreads, 1)
    linear_grad_sm80(const __grid_constant__ Operand inputs, const __grid_constant__ Operand grads,
                     const __grid_constant__ Job job) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
  const Fragment<4> fragment(warp_row, warp_column, lane);
  const uint32_t ring = dynamic_shared();
  const int steps = (job.t + kDepth - 1) / kDepth * passes(job.planes_a, job.planes_b);

  Cursor next(job);
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (next.live) {
      load_stage(ring + stage * kStage, next, inputs, grads);
      next.advance();
    }
    copy_commit();
  }

  int stage = 0;
  float g[64];
  Sums<64, 4, kColumns, TOTAL> sums;
  Segment part;
  for (int index = 0; segment(job.plan, static_cast<int>(blockIdx.x), index, part); ++index) {
    int o, i;
    place(job.plan, part.tile, o, i);
    sums.clear();
    for (int n = part.first; n < part.last; ++n) {
      const float scale = job.scale == nullptr ? 1.f : job.scale[n];
      const float weight = job.weight == nullptr ? 1.f : job.weight[n];
#pragma unroll
      for (int k = 0; k < 64; ++k) g[k] = 0.f;
      for (int step = 0; step < steps; ++step) {
        copy_wait<kStages - 2>();
        __syncthreads();  // this stage has come, for all; and all are done with the one that is loaded next
        if (next.live) {
          load_stage(ring + (stage + kStages - 1) % kStages * kStage, next, inputs, grads);
          next.advance();
        }
        copy_commit();  // also an empty one: the count of groups is the count of steps
        multiply<E>(g, ring + stage * kStage, warp_row, warp_column, lane);
        stage = (stage + 1) % kStages;
      }
      sums.add_sample(g, scale, weight);
      if (job.partials != nullptr) write_partials<64, 4, kColumns>(job, g, fragment, n, part.tile, o, i);
    }
    sums.flush(job, fragment, o, i, part.slot);
  }
  copy_wait<0>();
}

}  // namespace

const char* run_sm80(const Job& job, const Operand& inputs, const Operand& grads, bool fp16, bool total,
                     cudaStream_t stream) {
  const auto kernel = fp16 ? (total ? linear_grad_sm80<Fp16, true> : linear_grad_sm80<Fp16, false>)
                           : (total ? linear_grad_sm80<Bf16, true> : linear_grad_sm80<Bf16, false>);
  return launch(kernel, static_cast<unsigned>(job.plan.workers), kThreads, 1, kSm80Shared, stream, inputs, grads, job);
}

}  // namespace encore::cuda
