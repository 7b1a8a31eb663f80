// Chooses the kernel from the device, the types, the alignment and the shape; lays out the workspace; runs the passes.
#include "launch.h"

#include <climits>
#include <cstdio>

#include "kernels.h"
#include "tiles.h"

namespace encore::cuda {
namespace {

constexpr int64_t kPackBytes = 64 << 20;  // packed operands are held for as many samples as fit, one at least

struct Choice {
  Kernel kernel;
  bool fp16, pack_a, pack_b, total;
  int columns;
  int64_t samples;  // a launch
  Job job;
  size_t packed_b, partials, slots, bytes;  // offsets into the workspace; packed inputs are at 0
};

bool empty(const LinearGrad& g) { return g.n == 0 || g.t == 0 || g.i == 0 || g.o == 0; }

int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

bool sums_tiles(const LinearGrad& g) { return g.fisher != nullptr || g.total != nullptr; }

// Whether a kernel can read an operand where it lies. cp.async and TMA want 16-byte aligned rows; TMA also wants
// strides that move forward, and samples or rows that don't overlap.
bool lies_right(const void* data, int64_t n, int64_t t, int64_t channels, int64_t stride_n, int64_t stride_t, bool tma) {
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return false;
  const auto right = [&](int64_t size, int64_t stride) {
    if (size == 1) return true;
    return stride % 8 == 0 && (!tma || (stride >= channels && stride < int64_t{1} << 39));
  };
  return right(n, stride_n) && right(t, stride_t);
}

int planes(DType type, bool fp16) { return fp16 || type == DType::bfloat16 ? 1 : 2; }

size_t packed_bytes(const LinearGrad& g, int64_t channels, int layers) {
  return static_cast<size_t>(layers) * g.t * up(channels, 8) * 2;
}

const char* attribute(int& value, cudaDeviceAttr name, int device) {
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* choose_kernel(const LinearGrad& g, Kernel wanted, int device, Kernel& kernel) {
  int major, minor;
  if (const char* error = attribute(major, cudaDevAttrComputeCapabilityMajor, device)) return error;
  if (const char* error = attribute(minor, cudaDevAttrComputeCapabilityMinor, device)) return error;
  const bool hopper = major == 9 && minor == 0;
  const bool fits = g.n <= INT_MAX / 2 && g.t <= INT_MAX / 4 && g.i <= INT_MAX / 4 && g.o <= INT_MAX / 4 &&
                    up(g.i, kTileRows) / kTileRows * (up(g.o, kTileRows) / kTileRows + 1) <= INT_MAX;
  kernel = wanted;
  if (kernel == Kernel::automatic) kernel = !fits || major < 8 ? Kernel::simt : hopper ? Kernel::sm90 : Kernel::sm80;
  if (kernel == Kernel::simt) return nullptr;
  if (!fits) return "a shape of this size has only the simt kernel";
  if (major < 8) return "the sm80 kernel needs compute capability 8.0";
  if (kernel != Kernel::sm80 && !hopper) return "the sm90 kernel runs on compute capability 9.0 only";
  return nullptr;
}

void plan(Choice& choice, const LinearGrad& g, int samples, int columns, int limit) {
  Plan& plan = choice.job.plan;
  const int rows = kTileRows * choice.job.blocks;
  plan.samples = samples;
  plan.tiles_o = static_cast<int>((g.o + rows - 1) / rows);
  plan.tiles_i = static_cast<int>((g.i + columns - 1) / columns);
  const int64_t units = int64_t{tiles(plan)} * samples;
  plan.workers = static_cast<int>(units < limit ? units : limit);
}

// The wide tile reads less for its arithmetic (a tenth faster, as an estimate), but may fit a shape worse.
double cost(const Choice& choice, int columns) {
  const Plan& plan = choice.job.plan;
  const int64_t units = int64_t{tiles(plan)} * plan.samples;
  return static_cast<double>((units + plan.workers - 1) / plan.workers) * columns * (columns == 128 ? 1.1 : 1.0);
}

const char* choose(const LinearGrad& g, Kernel wanted, Choice& choice) {
  int device, processors;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return cudaGetErrorString(error);
  if (const char* error = choose_kernel(g, wanted, device, choice.kernel)) return error;
  if (const char* error = attribute(processors, cudaDevAttrMultiProcessorCount, device)) return error;
  const int64_t results = (g.sq_norms != nullptr ? 1 : 0) + g.m;
  Job& job = choice.job;
  if (choice.kernel == Kernel::simt) {
    choice.samples = g.n;
    choice.packed_b = choice.partials = 0;
    choice.slots = choice.bytes = static_cast<size_t>(g.n * results * simt_writers(g)) * sizeof(float);
    return nullptr;
  }

  const bool tma = choice.kernel != Kernel::sm80;
  choice.fp16 = g.a_type == DType::float16 && g.b_type == DType::float16;
  choice.total = g.total != nullptr;
  job.planes_a = planes(g.a_type, choice.fp16);
  job.planes_b = planes(g.b_type, choice.fp16);
  choice.pack_a = job.planes_a == 2 || !lies_right(g.a, g.n, g.t, g.i, g.a_stride_n, g.a_stride_t, tma);
  choice.pack_b = job.planes_b == 2 || !lies_right(g.b, g.n, g.t, g.o, g.b_stride_n, g.b_stride_t, tma);

  const size_t one_a = choice.pack_a ? packed_bytes(g, g.i, job.planes_a) : 0;
  const size_t one_b = choice.pack_b ? packed_bytes(g, g.o, job.planes_b) : 0;
  int64_t samples = g.n < kMaxSamples ? g.n : kMaxSamples;
  if (one_a + one_b > 0) {
    const int64_t fit = static_cast<int64_t>(kPackBytes / (one_a + one_b));
    samples = fit < 1 ? 1 : samples < fit ? samples : fit;
  }
  choice.samples = samples;

  job.blocks = choice.kernel == Kernel::sm90 && g.o > kTileRows ? 2 : 1;
  int limit = processors / job.blocks;
  limit = limit < 1 ? 1 : limit > kMaxWorkers ? kMaxWorkers : limit;
  choice.columns = 128;
  if (tma && !choice.total && g.m == 0) {
    plan(choice, g, static_cast<int>(samples), 192, limit);
    const double wide = cost(choice, 192);
    plan(choice, g, static_cast<int>(samples), 128, limit);
    if (wide <= cost(choice, 128)) choice.columns = 192;
  }
  plan(choice, g, static_cast<int>(samples), choice.columns, limit);

  job.norms = g.sq_norms != nullptr;
  job.m = g.m;
  const bool parts = g.deterministic && sums_tiles(g) && job.plan.workers > 1;
  const int64_t slot = int64_t{kTileRows} * choice.columns * (choice.total ? 2 : 1);
  choice.packed_b = static_cast<size_t>(up(static_cast<int64_t>(one_a) * samples, 256));
  choice.partials = choice.packed_b + static_cast<size_t>(up(static_cast<int64_t>(one_b) * samples, 256));
  choice.slots = choice.partials + static_cast<size_t>(up(samples * kinds(job) * writers(job) * 4, 256));
  choice.bytes = choice.slots + (parts ? static_cast<size_t>(2 * job.plan.workers * job.blocks * slot * 4) : 0);
  return nullptr;
}

// An operand as the kernels read it: where it lies, or its packed copy.
const char* prepare(Operand& out, const void* data, DType type, int64_t stride_n, int64_t stride_t, int64_t channels,
                    const LinearGrad& g, const Choice& choice, int layers, bool pack, void* packed, int64_t first,
                    int64_t samples, cudaStream_t stream) {
  const size_t width = type == DType::float32 ? 4 : 2;
  const char* from = static_cast<const char*>(data) + first * stride_n * static_cast<int64_t>(width);
  out.channels = static_cast<int>(channels);
  if (pack) {
    out.data = packed;
    out.stride_t = up(channels, 8);
    out.stride_n = g.t * out.stride_t;
    return run_pack(from, type, stride_n, stride_t, out, samples, g.t, layers, choice.fp16, stream);
  }
  out.data = from;
  out.stride_t = g.t == 1 ? up(channels, 8) : stride_t;  // of one row or one sample the stride may be anything
  out.stride_n = g.n == 1 ? up(channels, 8) : stride_n;
  return nullptr;
}

const char* run_tiles(const LinearGrad& g, const Choice& choice, char* workspace, int64_t first, int64_t samples,
                      cudaStream_t stream) {
  Choice now = choice;
  Job& job = now.job;
  const int limit = choice.job.plan.workers;
  plan(now, g, static_cast<int>(samples), choice.columns, limit);
  job.t = static_cast<int>(g.t);
  job.i = static_cast<int>(g.i);
  job.o = static_cast<int>(g.o);
  job.fisher = g.fisher;
  job.fisher_stride = g.fisher_stride;
  job.total = g.total;
  job.total_stride = g.total_stride;
  job.scale = g.scale == nullptr ? nullptr : g.scale + first;
  job.weight = g.weight == nullptr ? nullptr : g.weight + first;
  job.directions = g.directions;
  job.partials = kinds(job) > 0 ? reinterpret_cast<float*>(workspace + choice.partials) : nullptr;
  job.slots = choice.bytes > choice.slots ? reinterpret_cast<float*>(workspace + choice.slots) : nullptr;

  Operand inputs, grads;
  const char* error = prepare(inputs, g.a, g.a_type, g.a_stride_n, g.a_stride_t, g.i, g, choice, job.planes_a,
                              choice.pack_a, workspace, first, samples, stream);
  if (error == nullptr)
    error = prepare(grads, g.b, g.b_type, g.b_stride_n, g.b_stride_t, g.o, g, choice, job.planes_b, choice.pack_b,
                    workspace + choice.packed_b, first, samples, stream);
  if (error == nullptr)
    error = choice.kernel == Kernel::sm80
                ? run_sm80(job, inputs, grads, choice.fp16, choice.total, stream)
                : run_sm90(job, inputs, grads, choice.fp16, choice.columns, choice.total, stream);
  if (error == nullptr && job.partials != nullptr)
    error = run_fold_partials(job.partials, samples, kinds(job), writers(job),
                              g.sq_norms == nullptr ? nullptr : g.sq_norms + first,
                              g.dots == nullptr ? nullptr : g.dots + first * g.m, stream);
  if (error == nullptr && job.slots != nullptr && tail_tiles(job.plan) > 0)
    error = run_fold_slots(job, choice.columns, choice.total, stream);
  return error;
}

const char* zero(float* values, int64_t count, cudaStream_t stream) {
  if (values == nullptr || count == 0) return nullptr;
  const cudaError_t error = cudaMemsetAsync(values, 0, static_cast<size_t>(count) * sizeof(float), stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* linear_grad_workspace(const LinearGrad& grad, size_t& bytes, Kernel kernel) {
  bytes = 0;
  if (empty(grad)) return nullptr;
  Choice choice{};
  const char* error = choose(grad, kernel, choice);
  if (error == nullptr) bytes = choice.bytes;
  return error;
}

const char* linear_grad(const LinearGrad& grad, void* workspace, size_t bytes, void* queue, Kernel kernel) {
  const auto stream = static_cast<cudaStream_t>(queue);
  if (empty(grad)) {  // no k-step runs, so no kernel could say zero
    const char* error = zero(grad.sq_norms, grad.n, stream);
    return error != nullptr ? error : zero(grad.dots, grad.n * grad.m, stream);
  }
  Choice choice{};
  if (const char* error = choose(grad, kernel, choice)) return error;
  if (bytes < choice.bytes) return "the workspace is smaller than linear_grad_workspace says";
  char* memory = static_cast<char*>(workspace);
  if (choice.kernel == Kernel::simt) {
    float* partials = reinterpret_cast<float*>(memory);
    const int64_t results = (grad.sq_norms != nullptr ? 1 : 0) + grad.m;
    const char* error = run_simt(grad, partials, stream);
    if (error != nullptr || results == 0) return error;
    return run_fold_partials(partials, grad.n, results, simt_writers(grad), grad.sq_norms, grad.dots, stream);
  }
  for (int64_t first = 0; first < grad.n; first += choice.samples) {
    const int64_t samples = grad.n - first < choice.samples ? grad.n - first : choice.samples;
    if (const char* error = run_tiles(grad, choice, memory, first, samples, stream)) return error;
  }
  return nullptr;
}

const char* linear_grad_describe(const LinearGrad& grad, char* text, size_t size, Kernel kernel) {
  Choice choice{};
  if (const char* error = choose(grad, kernel, choice)) return error;
  if (choice.kernel == Kernel::simt)
    std::snprintf(text, size, "simt");
  else
    std::snprintf(text, size, "%s: %dx%d tiles, clusters of %d, %d workers, %d passes%s%s",
                  choice.kernel == Kernel::sm80 ? "sm80" : "sm90", kTileRows, choice.columns, choice.job.blocks,
                  choice.job.plan.workers, passes(choice.job.planes_a, choice.job.planes_b),
                  choice.pack_a ? ", inputs packed" : "", choice.pack_b ? ", grads packed" : "");
  return nullptr;
}

}  // namespace encore::cuda
