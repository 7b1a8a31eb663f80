// Runs the CPU kernels without torch, for sanitizers: operands lie at the very ends of their memory, results between
// guards, and every result is compared with float64. With ENCORE_BASELINE all tiles run on any processor: vectors are
// the compiler's, and the registers of AMX are arrays. Prints what is wrong and returns 1, or prints "ok".
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/linear_grad.h"

namespace {

std::mt19937 random_bits(1);

float uniform() { return std::uniform_real_distribution<float>(0.1f, 1.0f)(random_bits); }

// [N, T, C] numbers, sized as its last element demands; read back as the kernel should.
struct Operand {
  encore::DType type;
  int64_t stride_n, stride_t;
  std::vector<float> floats;
  std::vector<uint16_t> halves;

  Operand(encore::DType type, int64_t n, int64_t t, int64_t c, int64_t pad)
      : type(type), stride_n(t * (c + pad)), stride_t(c + pad) {
    const int64_t size = n * t * c == 0 ? 0 : (n - 1) * stride_n + (t - 1) * stride_t + c;
    floats.resize(size);
    for (float& x : floats) x = uniform();
    if (type == encore::DType::float32) return;
    halves.resize(size);
    for (int64_t k = 0; k < size; ++k) {  // numbers that both 16-bit types hold: 1, 1.5, ... with a sign
      const bool is_negative = random_bits() % 2, has_half = random_bits() % 2;
      floats[k] = (is_negative ? -1.0f : 1.0f) * (has_half ? 1.5f : 1.0f);
      halves[k] = (is_negative ? 0x8000 : 0) | (type == encore::DType::bfloat16 ? 0x3f80 : 0x3c00) |
                  (has_half ? (type == encore::DType::bfloat16 ? 0x40 : 0x200) : 0);
    }
  }
  const void* data() const { return halves.empty() ? static_cast<const void*>(floats.data()) : halves.data(); }
  double at(int64_t n, int64_t t, int64_t c) const { return floats[n * stride_n + t * stride_t + c]; }
};

// ‖found - wanted‖ / size of what was summed.
bool is_near(const char* what, const std::vector<double>& wanted, const std::vector<double>& size, const float* found,
             int64_t columns, int64_t stride) {
  double error = 0, norm = 0;
  for (size_t k = 0; k < wanted.size(); ++k) {
    const double delta = found[k / columns * stride + k % columns] - wanted[k];
    if (!(std::abs(delta) < 1e30)) error = std::numeric_limits<double>::infinity();
    error += delta * delta;
    norm += size[k] * size[k];
  }
  if (error <= 4e-12 * norm) return true;
  std::printf("%s: error %g\n", what, std::sqrt(error / norm));
  return false;
}

bool run(const encore::cpu::Isa& isa, int64_t n, int64_t t, int64_t i, int64_t o, encore::DType a_type,
         encore::DType b_type, int64_t m, int64_t pad) {
  const Operand a(a_type, n, t, i, pad), b(b_type, n, t, o, pad);
  std::vector<float> scale(n), weight(n), directions(m * o * i);
  for (auto* values : {&scale, &weight, &directions})
    for (float& x : *values) x = uniform();
  const int64_t stride = i + pad;
  const float guard = -7, poison = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> fisher(o * stride, guard), total(o * stride, guard), norms(n, poison), dots(n * m, poison);
  for (auto* matrix : {&fisher, &total})
    for (int64_t r = 0; r < o; ++r)
      for (int64_t c = 0; c < i; ++c) (*matrix)[r * stride + c] = 0;

  std::vector<double> f(o * i), f_size(o * i), s(o * i), s_size(o * i), q(n), q_size(n), d(n * m), d_size(n * m);
  for (int64_t k = 0; k < n; ++k)
    for (int64_t r = 0; r < o; ++r)
      for (int64_t c = 0; c < i; ++c) {
        double g = 0, size = 0;
        for (int64_t p = 0; p < t; ++p) {
          g += b.at(k, p, r) * a.at(k, p, c);
          size += std::abs(b.at(k, p, r) * a.at(k, p, c));
        }
        // A sum that happens to cancel has fewer digits, and its square too.
        const double g_size = std::max(std::abs(g), size / std::sqrt(static_cast<double>(std::max<int64_t>(t, 1))));
        f[r * i + c] += scale[k] * g * g;
        f_size[r * i + c] += scale[k] * std::abs(g) * g_size;
        s[r * i + c] += weight[k] * g;
        s_size[r * i + c] += weight[k] * size;
        q[k] += g * g;
        q_size[k] += std::abs(g) * g_size;
        for (int64_t v = 0; v < m; ++v) {
          d[k * m + v] += g * directions[(v * o + r) * i + c];
          d_size[k * m + v] += size * directions[(v * o + r) * i + c];
        }
      }

  encore::LinearGrad g{};
  g.a = a.data(), g.b = b.data(), g.a_type = a_type, g.b_type = b_type;
  g.n = n, g.t = t, g.i = i, g.o = o, g.m = m;
  g.a_stride_n = a.stride_n, g.a_stride_t = a.stride_t, g.b_stride_n = b.stride_n, g.b_stride_t = b.stride_t;
  g.fisher = fisher.data(), g.total = total.data(), g.fisher_stride = g.total_stride = stride;
  g.scale = scale.data(), g.weight = weight.data(), g.directions = directions.data();
  g.sq_norms = norms.data(), g.dots = m > 0 ? dots.data() : nullptr;
  encore::cpu::linear_grad(g, isa, [](int64_t count, int64_t grain, const auto& body) {
    for (int64_t begin = (count - 1) / grain * grain; begin >= 0; begin -= grain)  // any order will do
      body(begin, begin + grain < count ? begin + grain : count);
  });

  bool ok = is_near("fisher", f, f_size, fisher.data(), std::max<int64_t>(i, 1), stride) &
            is_near("total", s, s_size, total.data(), std::max<int64_t>(i, 1), stride) &
            is_near("norms", q, q_size, norms.data(), 1, 1) &
            is_near("dots", d, d_size, dots.data(), 1, 1);
  for (const auto* matrix : {&fisher, &total})
    for (int64_t r = 0; r < o; ++r)
      for (int64_t c = i; c < stride; ++c) ok = ok && (*matrix)[r * stride + c] == guard;
  if (!ok)
    std::printf("%s N %ld T %ld I %ld O %ld types %d %d\n", isa.name, (long)n, (long)t, (long)i, (long)o, (int)a_type,
                (int)b_type);
  return ok;
}

}  // namespace

int main() {
  std::vector<const encore::cpu::Isa*> all{&encore::cpu::portable};
#ifdef __x86_64__
  all.insert(all.end(), {&encore::cpu::avx2, &encore::cpu::avx512, &encore::cpu::amx});
#endif
  bool ok = true;
  for (const auto* isa : all) {
    for (int64_t t : {0, 1, 2, 63, 256, 257, 600})
      for (int64_t i : {0, 1, 16, 33, 70})
        for (int64_t o : {0, 1, 6, 14, 31, 97}) {
          const auto type = [&] { return static_cast<encore::DType>(random_bits() % 3); };
          ok = run(*isa, 1 + random_bits() % 3, t, i, o, type(), type(), random_bits() % 3, random_bits() % 4) && ok;
        }
    ok = run(*isa, 0, 5, 5, 5, encore::DType::float32, encore::DType::float32, 1, 0) && ok;
    ok = run(*isa, 70, 9, 40, 20, encore::DType::float32, encore::DType::bfloat16, 1, 0) && ok;
  }
  if (ok) std::puts("ok");
  return ok ? 0 : 1;
}
