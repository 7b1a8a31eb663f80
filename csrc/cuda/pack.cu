// Operands that the tensor-core kernels can't take as they lie (float32, two types, odd strides) -> 16-bit planes.
#include "kernels.h"
#include "types.h"

namespace encore::cuda {
namespace {

constexpr int kThreads = 256, kChunk = 8;  // a thread writes 16 bytes

// A value that bfloat16 rounds to infinity, or that is one, has no low part: inf - inf would make it NaN.
ENCORE_DEVICE float rest(float value, uint16_t high) {
  return (high & 0x7f80) == 0x7f80 ? 0.f : value - widen(Bf16{}, high);
}

__global__ void __launch_bounds__(kThreads)
    pack(const void* from, DType type, int64_t stride_n, int64_t stride_t, Operand to, int64_t n, int64_t t, int planes,
         bool fp16) {
  const int64_t chunks = to.stride_t / kChunk, all = n * t * chunks, plane = n * to.stride_n;
  auto* out = static_cast<uint16_t*>(const_cast<void*>(to.data));
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < all; at += int64_t{gridDim.x} * kThreads) {
    const int64_t row = at / chunks, channel = at % chunks * kChunk;
    const int64_t source = row / t * stride_n + row % t * stride_t + channel;
    alignas(16) uint16_t high[kChunk], low[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float value = channel + k < to.channels ? read(from, type, source + k) : 0.f;
      high[k] = fp16 ? narrow(Fp16{}, value) : narrow(Bf16{}, value);
      low[k] = narrow(Bf16{}, rest(value, high[k]));
    }
    uint16_t* target = out + at * kChunk;
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(high);
    if (planes == 2) *reinterpret_cast<uint4*>(target + plane) = *reinterpret_cast<const uint4*>(low);
  }
}

}  // namespace

const char* run_pack(const void* from, DType type, int64_t stride_n, int64_t stride_t, const Operand& to, int64_t n,
                     int64_t t, int planes, bool fp16, cudaStream_t stream) {
  const int64_t wanted = (n * t * (to.stride_t / kChunk) + kThreads - 1) / kThreads;
  const unsigned blocks = static_cast<unsigned>(wanted < 4096 ? wanted : 4096);
  return launch(pack, blocks, kThreads, 1, 0, stream, from, type, stride_n, stride_t, to, n, t, planes, fp16);
}

}  // namespace encore::cuda
