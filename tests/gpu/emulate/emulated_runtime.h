// The part of CUDA's runtime and driver that csrc/cuda calls. ENCORE_ARCH and ENCORE_PROCESSORS (environment) choose
// the device: compute capability times ten, and multiprocessors.
#pragma once

#define CUDART_VERSION 13000

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaDevAttrComputeCapabilityMajor = 1, cudaDevAttrComputeCapabilityMinor = 2,
              cudaDevAttrMultiProcessorCount = 3, cudaFuncAttributeMaxDynamicSharedMemorySize = 0,
              cudaLaunchAttributeClusterDimension = 0, cudaEnableDefault = 0, cudaDriverEntryPointSuccess = 0,
              cudaMemcpyHostToDevice = 0, cudaMemcpyDeviceToHost = 1;
using cudaDeviceAttr = int;
using cudaDriverEntryPointQueryResult = int;

struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
struct cudaDeviceProp {
  char name[64];
  int major, minor, multiProcessorCount;
};

inline int emulated(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  const int arch = emulated("ENCORE_ARCH", 90);
  *value = name == cudaDevAttrComputeCapabilityMajor   ? arch / 10
           : name == cudaDevAttrComputeCapabilityMinor ? arch % 10
                                                       : emulated("ENCORE_PROCESSORS", 4);
  return 0;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int) {
  std::snprintf(out->name, sizeof(out->name), "emulator");
  cudaDeviceGetAttribute(&out->major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&out->minor, cudaDevAttrComputeCapabilityMinor, 0);
  cudaDeviceGetAttribute(&out->multiProcessorCount, cudaDevAttrMultiProcessorCount, 0);
  return 0;
}
template <class T>
cudaError_t cudaMalloc(T** out, size_t bytes) {
  *out = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  return 0;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return 0;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  std::memcpy(to, from, bytes);
  return 0;
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return 0;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
inline cudaError_t cudaDeviceSynchronize() { return 0; }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  return bytes <= 227 * 1024 ? 0 : 1;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... given) {
  const unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  const std::tuple<Parameters...> arguments(given...);
  emulator::run(config->gridDim.x, config->blockDim.x, cluster, config->dynamicSmemBytes,
                [&] { std::apply(kernel, arguments); });
  return 0;
}

// ------------------------------------------------------------------------------------------------ tensor maps

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
using CUresult = int;
using CUtensorMapDataType = int;
using CUtensorMapInterleave = int;
using CUtensorMapSwizzle = int;
using CUtensorMapL2promotion = int;
using CUtensorMapFloatOOBfill = int;
constexpr int CUDA_SUCCESS = 0, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
              CU_TENSOR_MAP_INTERLEAVE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3, CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0;

// Holds what the driver's manual asks of a tiled map.
inline CUresult emulated_encode(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (rank != 3 || reinterpret_cast<uintptr_t>(data) % 16 != 0 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B) return 1;
  map->data = static_cast<const uint16_t*>(data);
  for (int k = 0; k < 3; ++k) {
    if (sizes[k] == 0 || box[k] == 0 || box[k] > 256) return 1;
    map->sizes[k] = sizes[k];
    map->box[k] = box[k];
  }
  for (int k = 0; k < 2; ++k) {
    if (strides[k] % 16 != 0 || strides[k] >= uint64_t{1} << 40 || strides[k] < sizes[0] * 2) return 1;
    map->strides[k] = strides[k];
  }
  return box[0] * 2 <= 128 ? CUDA_SUCCESS : 1;
}

inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** out, unsigned, unsigned long long, int* found) {
  *out = reinterpret_cast<void*>(&emulated_encode);
  *found = cudaDriverEntryPointSuccess;
  return 0;
}
