// The entry of each .cu, and how a kernel is launched. Every function gives null, or what went wrong.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../linear_grad.h"

namespace encore::cuda {

struct Job;

// A 16-bit operand as the tensor-core kernels take it: [planes * samples, t, channels], channels contiguous, rows and
// start 16-byte aligned, 1 plane or 2 (high and low).
struct Operand {
  const void* data;
  int64_t stride_n, stride_t;  // in elements
  int channels;
};

template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, unsigned cluster, size_t shared,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// simt.cu. Norms and dots go to partials [N, kinds, simt_writers(g)].
int64_t simt_writers(const LinearGrad& g);
const char* run_simt(const LinearGrad& g, float* partials, cudaStream_t stream);

// pack.cu. [n, t, channels] of any type and strides -> planes of 16-bit elements: the value itself, or the bfloat16
// nearest to it and (two planes) the one nearest to what is left.
const char* run_pack(const void* from, DType type, int64_t stride_n, int64_t stride_t, const Operand& to, int64_t n,
                     int64_t t, int planes, bool fp16, cudaStream_t stream);

// fold.cu: the second passes, in a fixed order.
const char* run_fold_partials(const float* partials, int64_t n, int64_t kinds, int64_t writers, float* sq_norms,
                              float* dots, cudaStream_t stream);
const char* run_fold_slots(const Job& job, int columns, bool total, cudaStream_t stream);

// sm80.cu, sm90.cu. `columns` of a tile: 128, or 192 without `total` on sm_90a.
constexpr int kSm80Shared = 64 * 1024;
int sm90_shared_bytes(int columns);
const char* run_sm80(const Job& job, const Operand& inputs, const Operand& grads, bool fp16, bool total,
                     cudaStream_t stream);
const char* run_sm90(const Job& job, const Operand& inputs, const Operand& grads, bool fp16, int columns, bool total,
                     cudaStream_t stream);

}  // namespace encore::cuda
