// Every kernel that the device can run, against sums in float64 on the host. No torch: compute-sanitizer can run it.
//
//   selftest [--quick] [--kernel NAME]     exit code 0: all right, 1: a figure is off, 2: a call failed
//
// Memory that must not be read (between rows, beyond the last channel) is NaN, memory that must not be written is
// compared, results that are overwritten start as NaN, and the workspace starts as NaN.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "launch.h"

namespace {

using encore::DType;
using encore::LinearGrad;
using encore::cuda::Kernel;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

struct Memory {  // on the device, of just this size, so that memcheck sees one byte too many
  void* data = nullptr;
  size_t bytes;

  explicit Memory(size_t size) : bytes(size) {
    check(cudaMalloc(&data, size == 0 ? 1 : size), "cudaMalloc");
    check(cudaMemset(data, 0xff, size), "cudaMemset");
  }
  template <class T>
  explicit Memory(const std::vector<T>& values) : Memory(values.size() * sizeof(T)) {
    check(cudaMemcpy(data, values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(data); }
  float* floats() const { return static_cast<float*>(data); }
  std::vector<float> back() const {
    std::vector<float> values(bytes / sizeof(float));
    check(cudaMemcpy(values.data(), data, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
};

uint64_t state = 1;

float uniform() {  // (-1, 1)
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<float>(static_cast<int64_t>(state >> 40) - (1 << 23)) / static_cast<float>(1 << 23);
}

// The bits of a value in a type, and the value made one that the type holds (digits cut off; no subnormals).
uint32_t encode(DType type, float& value) {
  if (type == DType::float16 && std::fabs(value) < 1e-4f) value = 0.f;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t kept = type == DType::float32 ? bits : type == DType::bfloat16 ? bits & 0xffff0000u : bits & 0xffffe000u;
  std::memcpy(&value, &kept, 4);
  if (type == DType::float32) return kept;
  if (type == DType::bfloat16) return kept >> 16;
  if (value == 0.f) return 0;
  return (kept >> 16 & 0x8000) | ((kept >> 23 & 0xff) - 112) << 10 | (kept >> 13 & 0x3ff);
}

enum class Layout { packed, padded, odd, time_first, shifted, one_sample };

struct Operand {
  std::vector<double> values;  // [n, t, c]
  int64_t stride_n, stride_t, offset = 0;
  std::vector<unsigned char> bytes;
};

Operand operand(int64_t n, int64_t t, int64_t c, DType type, Layout layout) {
  Operand x;
  const int64_t row = layout == Layout::padded ? (c + 7) / 8 * 8 + 8 : layout == Layout::odd ? c + 3 : c;
  x.stride_t = layout == Layout::time_first ? n * row : row;
  x.stride_n = layout == Layout::time_first ? row : layout == Layout::one_sample ? 0 : t * row;
  x.offset = layout == Layout::shifted ? 1 : 0;
  const size_t width = type == DType::float32 ? 4 : 2;
  const int64_t last = x.offset + (n - 1) * x.stride_n + (t - 1) * x.stride_t + c;
  x.bytes.assign(static_cast<size_t>(last > 0 ? last : 0) * width, 0xff);
  x.values.resize(static_cast<size_t>(n * t * c));
  for (int64_t s = 0; s < n; ++s)
    for (int64_t r = 0; r < t; ++r)
      for (int64_t k = 0; k < c; ++k) {
        const size_t to = static_cast<size_t>((s * t + r) * c + k);
        if (layout == Layout::one_sample && s > 0) {
          x.values[to] = x.values[static_cast<size_t>(r * c + k)];
          continue;
        }
        float value = uniform();
        const uint32_t bits = encode(type, value);
        x.values[to] = value;
        const int64_t at = x.offset + s * x.stride_n + r * x.stride_t + k;
        std::memcpy(x.bytes.data() + static_cast<size_t>(at) * width, &bits, width);  // little-endian
      }
  return x;
}

struct Case {
  int64_t n, t, i, o;
  DType a = DType::bfloat16, b = DType::bfloat16;
  Layout a_layout = Layout::packed, b_layout = Layout::packed;
  bool fisher = true, total = false, norms = false;
  int64_t m = 0;
  bool scaled = false, deterministic = false;
  int64_t gap = 0;  // columns between the rows of the results
};

const char* name(DType type) {
  return type == DType::float32 ? "fp32" : type == DType::bfloat16 ? "bf16" : "fp16";
}

std::string describe(const Case& c) {
  char text[240];
  std::snprintf(text, sizeof(text), "N %lld T %lld I %lld O %lld %s·%s layouts %d %d%s%s%s dots %lld%s%s gap %lld",
                static_cast<long long>(c.n), static_cast<long long>(c.t), static_cast<long long>(c.i),
                static_cast<long long>(c.o), name(c.a), name(c.b), static_cast<int>(c.a_layout),
                static_cast<int>(c.b_layout), c.fisher ? " fisher" : "", c.total ? " total" : "",
                c.norms ? " norms" : "", static_cast<long long>(c.m), c.scaled ? " scaled" : "",
                c.deterministic ? " deterministic" : "", static_cast<long long>(c.gap));
  return text;
}

struct Error {
  double difference = 0, size = 0;
  void add(double got, double want, double unit) {
    difference += (got - want) * (got - want);  // NaN stays
    size += unit * unit;
  }
  double relative() const { return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference); }
};

struct Sums {
  std::vector<double> fisher, total, norms, dots, unit;
};

Sums reference(const Case& c, const Operand& a, const Operand& b, const std::vector<float>& scale,
               const std::vector<float>& weight, const std::vector<float>& directions) {
  Sums sums;
  const size_t size = static_cast<size_t>(c.o * c.i);
  sums.fisher.assign(size, 0);
  sums.total.assign(size, 0);
  std::vector<double> g(size);
  for (int64_t n = 0; n < c.n; ++n) {
    std::fill(g.begin(), g.end(), 0.0);
    for (int64_t t = 0; t < c.t; ++t)
      for (int64_t o = 0; o < c.o; ++o) {
        const double left = b.values[static_cast<size_t>((n * c.t + t) * c.o + o)];
        const double* right = a.values.data() + (n * c.t + t) * c.i;
        double* row = g.data() + o * c.i;
        for (int64_t i = 0; i < c.i; ++i) row[i] += left * right[i];
      }
    double norm = 0;
    for (size_t k = 0; k < size; ++k) {
      norm += g[k] * g[k];
      sums.fisher[k] += (c.scaled ? scale[static_cast<size_t>(n)] : 1.0) * g[k] * g[k];
      sums.total[k] += (c.scaled ? weight[static_cast<size_t>(n)] : 1.0) * g[k];
    }
    sums.norms.push_back(norm);
    for (int64_t m = 0; m < c.m; ++m) {
      double dot = 0, length = 0;
      for (size_t k = 0; k < size; ++k) {
        const double v = directions[static_cast<size_t>(m) * size + k];
        dot += g[k] * v;
        length += v * v;
      }
      sums.dots.push_back(dot);
      sums.unit.push_back(std::sqrt(norm * length));
    }
  }
  return sums;
}

// Results are [o, i] in rows of i + gap; what was there counts in, and the gap must stay as it is.
double compare(const std::vector<float>& got, const std::vector<float>& before, const std::vector<double>& sum,
               int64_t o, int64_t i, int64_t gap) {
  Error error;
  for (int64_t r = 0; r < o; ++r)
    for (int64_t k = 0; k < i + gap; ++k) {
      const size_t at = static_cast<size_t>(r * (i + gap) + k);
      if (k >= i)
        error.add(got[at] == before[at] ? 0 : NAN, 0, 0);
      else
        error.add(got[at], before[at] + sum[static_cast<size_t>(r * i + k)], sum[static_cast<size_t>(r * i + k)]);
    }
  return error.relative();
}

bool run(const Case& c, Kernel kernel, const char* kernel_name) {
  state = 12345;
  const Operand a = operand(c.n, c.t, c.i, c.a, c.a_layout), b = operand(c.n, c.t, c.o, c.b, c.b_layout);
  std::vector<float> scale, weight, directions, before(static_cast<size_t>(c.o * (c.i + c.gap)));
  for (int64_t n = 0; n < c.n; ++n) {
    scale.push_back(uniform() + 0.5f);  // some are negative
    weight.push_back(uniform());
  }
  for (int64_t k = 0; k < c.m * c.o * c.i; ++k) directions.push_back(uniform());
  for (float& value : before) value = uniform();

  const Memory memory_a(a.bytes), memory_b(b.bytes), memory_scale(scale), memory_weight(weight), memory_v(directions);
  const Memory norms(static_cast<size_t>(c.n) * 4), dots(static_cast<size_t>(c.n * c.m) * 4);
  LinearGrad g{};
  g.a = static_cast<const char*>(memory_a.data) + a.offset * (c.a == DType::float32 ? 4 : 2);
  g.b = static_cast<const char*>(memory_b.data) + b.offset * (c.b == DType::float32 ? 4 : 2);
  g.a_type = c.a;
  g.b_type = c.b;
  g.n = c.n;
  g.t = c.t;
  g.i = c.i;
  g.o = c.o;
  g.a_stride_n = a.stride_n;
  g.a_stride_t = a.stride_t;
  g.b_stride_n = b.stride_n;
  g.b_stride_t = b.stride_t;
  g.fisher_stride = g.total_stride = c.i + c.gap;
  g.scale = c.scaled ? memory_scale.floats() : nullptr;
  g.weight = c.scaled ? memory_weight.floats() : nullptr;
  g.sq_norms = c.norms ? norms.floats() : nullptr;
  g.dots = c.m > 0 ? dots.floats() : nullptr;
  g.directions = c.m > 0 ? memory_v.floats() : nullptr;
  g.m = c.m;
  g.deterministic = c.deterministic;

  std::vector<std::vector<float>> seen;  // results of equal calls
  for (int call = 0; call < (c.deterministic ? 3 : 1); ++call) {
    const Memory fisher(before), total(before);
    g.fisher = c.fisher ? fisher.floats() : nullptr;
    g.total = c.total ? total.floats() : nullptr;
    size_t bytes = 0;
    const char* error = linear_grad_workspace(g, bytes, kernel);
    const Memory workspace(bytes);
    if (error == nullptr) error = linear_grad(g, workspace.data, bytes, nullptr, kernel);
    if (error != nullptr) {
      std::printf("FAILED %s, %s: %s\n", kernel_name, describe(c).c_str(), error);
      std::exit(2);
    }
    check(cudaDeviceSynchronize(), describe(c).c_str());
    std::vector<float> all = fisher.back();
    for (const auto& more : {total.back(), norms.back(), dots.back()}) all.insert(all.end(), more.begin(), more.end());
    seen.push_back(std::move(all));
  }
  for (size_t call = 1; call < seen.size(); ++call)
    if (std::memcmp(seen[0].data(), seen[call].data(), seen[0].size() * sizeof(float)) != 0) {
      std::printf("FAILED %s, %s: equal calls, other bits\n", kernel_name, describe(c).c_str());
      return false;
    }

  const Sums want = reference(c, a, b, scale, weight, directions);
  const size_t size = before.size();
  const std::vector<float>& got = seen[0];
  const auto part = [&](size_t from, size_t count) {
    return std::vector<float>(got.begin() + static_cast<int64_t>(from), got.begin() + static_cast<int64_t>(from + count));
  };
  const std::vector<double> nothing(want.fisher.size(), 0.0);
  double worst = compare(part(0, size), before, c.fisher ? want.fisher : nothing, c.o, c.i, c.gap);
  const auto take = [&](double error) { worst = error > worst || std::isnan(error) ? error : worst; };
  take(compare(part(size, size), before, c.total ? want.total : nothing, c.o, c.i, c.gap));
  Error dot_error, norm_error;
  for (size_t n = 0; n < static_cast<size_t>(c.n); ++n) {
    if (c.norms) norm_error.add(got[2 * size + n], want.norms[n], want.norms[n]);
    for (size_t m = 0; m < static_cast<size_t>(c.m); ++m) {
      const size_t at = n * static_cast<size_t>(c.m) + m;
      dot_error.add(got[2 * size + static_cast<size_t>(c.n) + at], want.dots[at], want.unit[at]);
    }
  }
  take(norm_error.relative());
  take(dot_error.relative());

  const bool halves = c.a != DType::float32 && c.b != DType::float32 && (c.a == c.b || kernel == Kernel::simt);
  const double plain = 2e-6 * std::sqrt(static_cast<double>(c.t > 1 ? c.t : 1));
  const double bound = kernel == Kernel::simt && !halves ? 4e-6 : halves ? plain : 5e-5;
  if (worst <= bound) return true;
  char chosen[160] = "";
  linear_grad_describe(g, chosen, sizeof(chosen), kernel);
  std::printf("FAILED %s, %s: error %.2e, allowed %.2e (%s)\n", kernel_name, describe(c).c_str(), worst, bound, chosen);
  return false;
}

std::vector<Case> cases(bool quick) {
  const DType f32 = DType::float32, bf16 = DType::bfloat16, f16 = DType::float16;
  std::vector<Case> all;
  const auto with = [&](Case c, auto... changes) {
    (changes(c), ...);
    all.push_back(c);
  };
  const auto everything = [](Case& c) { c.total = c.norms = c.scaled = true; };
  const auto fixed = [](Case& c) { c.deterministic = true; };
  const auto dots = [](Case& c) { c.m = 2; };

  // Shapes: one of each, odd ones, edges of tiles and of k-steps, empty ones.
  with({1, 1, 1, 1}, everything, dots);
  with({2, 3, 5, 7}, everything, dots);
  with({3, 70, 200, 136}, everything);
  with({3, 64, 192, 256});
  with({2, 33, 130, 129}, everything, fixed);
  with({2, 0, 24, 40}, everything, dots);
  with({0, 5, 24, 40}, everything, dots);
  with({5, 20, 400, 300}, fixed);                                           // rounds and tail; wide tiles
  with({5, 20, 400, 520}, everything, fixed, [](Case& c) { c.gap = 5; });
  with({5, 20, 400, 520}, everything, [](Case& c) { c.gap = 8; });
  with({2, 600, 40, 136}, everything);                                      // the ring goes round many times
  with({4, 40, 96, 64}, dots, [](Case& c) { c.fisher = false; });
  with({4, 40, 96, 300}, [](Case& c) { c.fisher = false, c.norms = true; });
  with({4, 40, 96, 64}, [](Case& c) { c.fisher = false, c.total = true; });
  // Types.
  for (const DType a : {f32, bf16, f16})
    for (const DType b : {f32, bf16, f16})
      with({2, 50, 140, 72}, everything, [&](Case& c) { c.a = a, c.b = b; });
  with({2, 50, 200, 72}, [&](Case& c) { c.a = f16, c.b = f16; });
  with({3, 30, 260, 300}, everything, fixed, [&](Case& c) { c.a = c.b = f32; });
  // Layouts.
  for (const Layout layout : {Layout::padded, Layout::odd, Layout::time_first, Layout::shifted, Layout::one_sample})
    for (const DType type : {bf16, f32})
      with({3, 18, 72, 80}, everything, [&](Case& c) { c.a = c.b = type, c.a_layout = c.b_layout = layout; });
  with({3, 18, 70, 80}, everything, [&](Case& c) { c.a_layout = Layout::padded, c.b_layout = Layout::time_first; });
  if (quick) return all;

  // What fills a GPU: several rounds of whole tiles, then a tail.
  with({3, 250, 1024, 1024});
  with({3, 250, 1024, 1024}, everything, fixed);
  with({8, 250, 1024, 768}, everything);
  with({2, 100, 2048, 3000}, fixed);
  with({2, 64, 4096, 2048}, everything);
  with({2, 64, 3000, 2048}, fixed);
  with({2, 1500, 512, 520}, everything);
  with({2, 1500, 512, 520}, everything, [&](Case& c) { c.a = c.b = f16; });
  with({2, 1500, 512, 520}, everything, [&](Case& c) { c.a = c.b = f32; });
  with({40, 16, 256, 384}, everything, dots);
  with({300, 5, 64, 136}, everything, fixed);
  with({12, 1500, 8, 1024}, everything, dots);  // LoRA
  with({12, 1500, 1024, 8}, everything, dots);
  with({5000, 1, 24, 16}, everything);          // more samples than a launch takes
  with({6, 2000, 1504, 2056}, [&](Case& c) { c.a = c.b = f32; });  // packed a few samples at a time
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  bool quick = false;
  std::string only;
  for (int k = 1; k < count; ++k) {
    if (std::string(arguments[k]) == "--quick") quick = true;
    if (std::string(arguments[k]) == "--kernel" && k + 1 < count) only = arguments[++k];
  }
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  const bool hopper = device.major == 9 && device.minor == 0;
  std::printf("%s, compute capability %d.%d, %d processors\n", device.name, device.major, device.minor,
              device.multiProcessorCount);
  struct Entry {
    const char* name;
    Kernel kernel;
    bool runs;
  };
  const Entry kernels[] = {{"simt", Kernel::simt, true},
                           {"sm80", Kernel::sm80, device.major >= 8},
                           {"sm90-single", Kernel::sm90_single, hopper},
                           {"sm90", Kernel::sm90, hopper}};
  int failed = 0;
  for (const Entry& entry : kernels) {
    if (!only.empty() && only != entry.name) continue;
    if (!entry.runs) {
      std::printf("%-12s not run: this device can't\n", entry.name);
      continue;
    }
    int right = 0, wrong = 0;
    for (const Case& c : cases(quick)) ++(run(c, entry.kernel, entry.name) ? right : wrong);
    std::printf("%-12s %d right, %d wrong\n", entry.name, right, wrong);
    std::fflush(stdout);
    failed += wrong;
  }
  return failed > 0 ? 1 : 0;
}
