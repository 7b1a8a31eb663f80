// The second passes: sums of what the blocks left, each in one fixed order.
#include "kernels.h"
#include "tiles.h"

namespace encore::cuda {
namespace {

constexpr int kThreads = 256;

// A block a (sample, kind): the sum of its writers' shares, in float64.
__global__ void __launch_bounds__(kThreads)
    fold_partials(const float* partials, int64_t kinds, int64_t writers, float* sq_norms, float* dots) {
  __shared__ double sums[kThreads];
  const float* share = partials + int64_t{blockIdx.x} * writers;
  double sum = 0;
  for (int64_t writer = threadIdx.x; writer < writers; writer += kThreads) sum += share[writer];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x > 0) return;
  const int64_t n = blockIdx.x / kinds, kind = blockIdx.x % kinds, m = kinds - (sq_norms != nullptr ? 1 : 0);
  const int64_t direction = kind - (sq_norms != nullptr ? 1 : 0);
  if (direction < 0)
    sq_norms[n] = static_cast<float>(sums[0]);
  else
    dots[n * m + direction] = static_cast<float>(sums[0]);
}

// An element of a tile of the tail: its parts in the order of the workers, then once to the result.
__global__ void __launch_bounds__(kThreads) fold_slots(const __grid_constant__ Job job, int columns, int sums) {
  const int elements = kTileRows * columns, chunks = elements / kThreads;
  const int chunk = blockIdx.x % chunks, rank = blockIdx.x / chunks % job.blocks;
  const int tail = blockIdx.x / chunks / job.blocks;
  const int element = chunk * kThreads + threadIdx.x;
  const Plan& plan = job.plan;
  const int tile = rounds(plan) * plan.workers + tail;
  int o, i;
  place(plan, tile, o, i);
  const int64_t row = (int64_t{o} * job.blocks + rank) * kTileRows + element / columns;
  const int64_t column = int64_t{i} * columns + element % columns;
  if (row >= job.o || column >= job.i) return;

  float fisher = 0.f, total = 0.f;
  bool parts = false;
  int first, last;
  sharers(plan, tail, first, last);
  for (int worker = first; worker < last; ++worker) {
    for (int piece = 0; piece < 2; ++piece) {
      Segment part;
      if (!segment(plan, worker, rounds(plan) + piece, part) || part.tile != tile || part.slot < 0) continue;
      const float* slot = job.slots + (int64_t{part.slot} * job.blocks + rank) * sums * elements + element;
      fisher += slot[0];
      if (sums == 2) total += slot[elements];
      parts = true;
    }
  }
  if (!parts) return;
  if (job.fisher != nullptr) job.fisher[row * job.fisher_stride + column] += fisher;
  if (sums == 2 && job.total != nullptr) job.total[row * job.total_stride + column] += total;
}

}  // namespace

const char* run_fold_partials(const float* partials, int64_t n, int64_t kinds, int64_t writers, float* sq_norms,
                              float* dots, cudaStream_t stream) {
  return launch(fold_partials, static_cast<unsigned>(n * kinds), kThreads, 1, 0, stream, partials, kinds, writers,
                sq_norms, dots);
}

const char* run_fold_slots(const Job& job, int columns, bool total, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(tail_tiles(job.plan) * job.blocks * (kTileRows * columns / kThreads));
  return launch(fold_slots, blocks, kThreads, 1, 0, stream, job, columns, total ? 2 : 1);
}

}  // namespace encore::cuda
