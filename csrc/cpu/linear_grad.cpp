// Which instruction set serves, and how a call is cut into tasks.
#include "linear_grad.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace encore::cpu {
namespace {

constexpr int64_t kTasks = 8;       // so many at least, for as many threads
constexpr int64_t kWorthAThread = 256 * 1024;  // multiplications, some 10 µs

#ifdef __x86_64__
// Whether processor and system have the tile registers of AMX and their bfloat16 products. Linux wants to be asked by
// each process, once, for they are 8 KB more of every thread's state.
bool may_use_tiles() {
#ifdef __linux__
  static const bool may = [] {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) || (ecx & bit_OSXSAVE) == 0) return false;
    constexpr unsigned kBfloat16 = 1 << 22, kTiles = 1 << 24, kStates = 3 << 17;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (~edx & (kBfloat16 | kTiles)) != 0) return false;
    unsigned states, high;
    __asm__("xgetbv" : "=a"(states), "=d"(high) : "c"(0));
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return (~states & kStates) == 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return may;
#else
  return false;
#endif
}
#endif

bool has(const Isa& isa) {
#ifdef __x86_64__
  if (&isa == &amx) return amx.pack != nullptr && has(avx512) && may_use_tiles();
  if (&isa == &avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  if (&isa == &avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &isa == &portable;
}

// AMX pays for itself where its large tiles are mostly filled: measured against AVX-512.
bool is_worthwhile(const Isa& isa, const LinearGrad& g) {
#ifdef __x86_64__
  if (&isa == &amx) {
    const bool is_narrow = g.a_type == DType::bfloat16 && g.b_type == DType::bfloat16;  // one product instead of six
    return g.i >= amx.columns && g.o >= amx.rows && g.t >= (is_narrow ? 24 : 64);
  }
#endif
  return true;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr std::align_val_t kHugePage{2 << 20};

struct Free {
  void operator()(float* memory) const { ::operator delete(memory, kHugePage); }
};

// Kept for the thread's next call: fresh pages would cost as much as a tenth of a short call. On huge pages, for panels
// are written in many places at once.
float* scratch(int64_t count) {
  thread_local std::unique_ptr<float, Free> memory;
  thread_local int64_t size = 0;
  if (size < count) {
    memory.reset();
    size = 0;
    memory.reset(static_cast<float*>(::operator new(count * sizeof(float), kHugePage)));
#ifdef MADV_HUGEPAGE
    madvise(memory.get(), count * sizeof(float), MADV_HUGEPAGE);  // a wish
#endif
    size = count;
  }
  return memory.get();
}

}  // namespace

const Isa& choose_isa(const LinearGrad* grad) {
#ifdef __x86_64__
  const Isa* const known[] = {&amx, &avx512, &avx2, &portable};
#else
  const Isa* const known[] = {&portable};
#endif
  const char* const setting = std::getenv("ENCORE_CPU_ISA");
  const std::string wanted = setting == nullptr ? "" : setting;
  for (const Isa* isa : known) {
    if (!wanted.empty() && wanted != isa->name) continue;
    if (wanted.empty() && grad != nullptr && !is_worthwhile(*isa, *grad)) continue;
    if (has(*isa)) return *isa;
    if (!wanted.empty()) throw std::runtime_error("ENCORE_CPU_ISA=" + wanted + ": not on this processor");
  }
  throw std::runtime_error("ENCORE_CPU_ISA=" + wanted + ": amx, avx512, avx2 or portable is needed");
}

void linear_grad(const LinearGrad& g, const Isa& isa, const Parallel& parallel) {
  if (g.sq_norms != nullptr) std::fill_n(g.sq_norms, g.n, 0.0f);
  if (g.dots != nullptr) std::fill_n(g.dots, g.n * g.m, 0.0f);
  if (g.n == 0 || g.t == 0 || g.i == 0 || g.o == 0) return;

  const int64_t packed = std::clamp<int64_t>(isa.packed / g.t, 1, g.n);  // samples in memory
  const int64_t panels = ceil_div(g.i, isa.columns), blocks = ceil_div(g.o, isa.rows);
  const int64_t a_panel = isa.panel_size(g.a_type, g.t, isa.columns), b_panel = isa.panel_size(g.b_type, g.t, isa.rows);
  const int64_t most = std::clamp<int64_t>(isa.group_bytes / (packed * b_panel * sizeof(float)), 1, isa.group);
  const int64_t group = ceil_div(blocks, ceil_div(blocks, most));  // of about equal size
  int64_t span = isa.span;
  while (span > 1 && ceil_div(blocks, group) * ceil_div(panels, span) < kTasks) span /= 2;
  const int64_t tasks = ceil_div(blocks, group) * ceil_div(panels, span);
  const int64_t a_size = packed * panels * a_panel, b_size = packed * blocks * b_panel;
  float* const a = scratch(a_size + b_size);
  float* const b = a + a_size;
  std::vector<double> sums(packed * tasks * (1 + g.m));

  for (int64_t first = 0; first < g.n; first += packed) {
    const int64_t samples = std::min(packed, g.n - first);
    const Work work{&g, first, samples, a, b, panels, blocks, group, span, sums.data()};
    const int64_t pieces = samples * (isa.pack_rows == 0 ? g.t : ceil_div(g.t, isa.pack_rows) * (panels + blocks));
    parallel(pieces, ceil_div(kWorthAThread / 8 * pieces, samples * g.t * (g.i + g.o)),
             [&](int64_t begin, int64_t end) { isa.pack(work, begin, end); });
    parallel(tasks, ceil_div(kWorthAThread, samples * g.t * group * span * isa.rows * isa.columns),
             [&](int64_t begin, int64_t end) {
               for (int64_t task = begin; task < end; ++task) isa.reduce(work, task);
             });
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t m = 0; m <= g.m; ++m) {
        double sum = 0;
        for (int64_t task = 0; task < tasks; ++task) sum += sums[(task * samples + s) * (1 + g.m) + m];
        if (m > 0)
          g.dots[(first + s) * g.m + m - 1] = static_cast<float>(sum);
        else if (g.sq_norms != nullptr)
          g.sq_norms[first + s] = static_cast<float>(sum);
      }
    }
  }
}

}  // namespace encore::cpu
