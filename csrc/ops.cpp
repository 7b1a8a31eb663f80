// Registers the CPU kernels with torch's dispatcher. The CUDA kernels' registration is cuda/register.cpp.

#include "ops.h"

#include <algorithm>
#include <atomic>

#include "cpu/linear_grad.h"

namespace {

using encore::MaybeTensor;
using encore::Tensor;

// Pieces go to whichever of ATen's threads is free: on a busy machine they are not equally fast.
void parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t piece = std::max(grain, count / (8 * threads));
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, std::min(threads, (count + piece - 1) / piece), 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(piece)) < count;) body(begin, std::min(begin + piece, count));
  });
}

encore::Results linear_grad_cpu(Tensor inputs, Tensor grads, MaybeTensor fisher, MaybeTensor scale, MaybeTensor total,
                                MaybeTensor weight, MaybeTensor directions, bool norms) {
  return encore::with_linear_grad(inputs, grads, fisher, scale, total, weight, directions, norms,
                                  [](const encore::LinearGrad& g, const Tensor&) {
                                    encore::cpu::linear_grad(g, encore::cpu::choose_isa(&g), parallel);
                                  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(encore, CPU, m) { m.impl("linear_grad_", TORCH_BOX(&linear_grad_cpu)); }
