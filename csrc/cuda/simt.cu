// The device reference: plain loops in float32, for every type, stride and shape, on every GPU; and what serves before
// sm_80. A block owns a tile of 16×16 through all samples, a thread one element of it.
#include <climits>

#include "kernels.h"
#include "types.h"

namespace encore::cuda {
namespace {

constexpr int kSide = 16, kThreads = kSide * kSide, kWarpsOfBlock = kThreads / 32;

ENCORE_DEVICE float sum_of_warp(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

__global__ void __launch_bounds__(kThreads) linear_grad_simt(const LinearGrad grad, float* partials) {
  __shared__ float inputs[kSide][kSide + 1], grads[kSide][kSide + 1];
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide, warp = threadIdx.x / 32;
  const int64_t across = (grad.i + kSide - 1) / kSide;
  const int64_t corner_i = blockIdx.x % across * kSide, corner_o = blockIdx.x / across * kSide;
  const int64_t i = corner_i + x, o = corner_o + y;
  const bool inside = i < grad.i && o < grad.o;
  const int64_t kinds = (grad.sq_norms != nullptr ? 1 : 0) + grad.m;
  const int64_t writers = int64_t{gridDim.x} * kWarpsOfBlock;
  float fisher = 0.f, total = 0.f;

  for (int64_t n = 0; n < grad.n; ++n) {
    float g = 0.f;
    for (int64_t first = 0; first < grad.t; first += kSide) {
      const int64_t t = first + y;
      const bool row = t < grad.t;
      inputs[y][x] =
          row && i < grad.i ? read(grad.a, grad.a_type, n * grad.a_stride_n + t * grad.a_stride_t + i) : 0.f;
      grads[y][x] = row && corner_o + x < grad.o
                        ? read(grad.b, grad.b_type, n * grad.b_stride_n + t * grad.b_stride_t + corner_o + x)
                        : 0.f;
      __syncthreads();
      float part = 0.f;  // sums of sixteen, then their sum: the error grows with T / 16
#pragma unroll
      for (int k = 0; k < kSide; ++k) part = fmaf(grads[k][y], inputs[k][x], part);
      g += part;
      __syncthreads();
    }
    fisher = fmaf((grad.scale == nullptr ? 1.f : grad.scale[n]) * g, g, fisher);
    total = fmaf(grad.weight == nullptr ? 1.f : grad.weight[n], g, total);

    float* out = partials + n * kinds * writers + int64_t{blockIdx.x} * kWarpsOfBlock + warp;
    for (int64_t kind = 0; kind < kinds; ++kind, out += writers) {
      const int64_t m = kind - (grad.sq_norms != nullptr ? 1 : 0);
      float value = g;
      if (m >= 0) value = inside ? grad.directions[(m * grad.o + o) * grad.i + i] : 0.f;
      const float sum = sum_of_warp(value * g);
      if (threadIdx.x % 32 == 0) *out = sum;
    }
  }
  if (inside && grad.fisher != nullptr) grad.fisher[o * grad.fisher_stride + i] += fisher;
  if (inside && grad.total != nullptr) grad.total[o * grad.total_stride + i] += total;
}

int64_t blocks(const LinearGrad& grad) { return (grad.i + kSide - 1) / kSide * ((grad.o + kSide - 1) / kSide); }

}  // namespace

int64_t simt_writers(const LinearGrad& grad) { return blocks(grad) * kWarpsOfBlock; }

const char* run_simt(const LinearGrad& grad, float* partials, cudaStream_t stream) {
  if (blocks(grad) > INT_MAX) return "a weight of this size has no kernel";
  return launch(linear_grad_simt, static_cast<unsigned>(blocks(grad)), kThreads, 1, 0, stream, grad, partials);
}

}  // namespace encore::cuda
