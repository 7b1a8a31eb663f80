// Registers the CUDA kernels with torch's dispatcher. Compiled where torch has CUDA; no CUDA header is read.

#ifndef USE_CUDA
#define USE_CUDA  // declares the part of torch's stable ABI that only a torch with CUDA exports
#endif
#include "../ops.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <cstdlib>
#include <string>

#include "launch.h"

namespace {

using encore::MaybeTensor;
using encore::Tensor;
using encore::cuda::Kernel;

// ENCORE_CUDA_KERNEL picks a kernel for a comparison; else the device and the shape do.
Kernel wanted_kernel() {
  const char* name = std::getenv("ENCORE_CUDA_KERNEL");
  const std::string wanted = name == nullptr ? "" : name;
  if (wanted.empty()) return Kernel::automatic;
  if (wanted == "simt") return Kernel::simt;
  if (wanted == "sm80") return Kernel::sm80;
  if (wanted == "sm90") return Kernel::sm90;
  STD_TORCH_CHECK(wanted == "sm90-single", "ENCORE_CUDA_KERNEL is simt, sm80, sm90 or sm90-single, not ", wanted);
  return Kernel::sm90_single;
}

// torch.are_deterministic_algorithms_enabled(), which the stable ABI has no call for: Python answers.
bool deterministic() {
  std::array<StableIValue, 1> stack{};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("encore::deterministic", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<bool>(stack[0]);
}

encore::Results linear_grad_cuda(Tensor inputs, Tensor grads, MaybeTensor fisher, MaybeTensor scale, MaybeTensor total,
                                 MaybeTensor weight, MaybeTensor directions, bool norms) {
  const int32_t device = inputs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  return encore::with_linear_grad(
      inputs, grads, fisher, scale, total, weight, directions, norms,
      [device](encore::LinearGrad g, const Tensor& like) {
        const Kernel kernel = wanted_kernel();
        g.deterministic = (g.fisher != nullptr || g.total != nullptr) && deterministic();
        size_t bytes = 0;
        const char* error = encore::cuda::linear_grad_workspace(g, bytes, kernel);
        STD_TORCH_CHECK(error == nullptr, "encore::linear_grad_: ", error == nullptr ? "" : error);
        void* stream = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
        // Freed at once: torch gives the memory only to what comes later in this stream.
        const Tensor workspace = torch::stable::new_empty(like, {static_cast<int64_t>(bytes)},
                                                          torch::headeronly::ScalarType::Byte);
        error = encore::cuda::linear_grad(g, workspace.mutable_data_ptr(), bytes, stream, kernel);
        STD_TORCH_CHECK(error == nullptr, "encore::linear_grad_: ", error == nullptr ? "" : error);
      });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(encore, CUDA, m) { m.impl("linear_grad_", TORCH_BOX(&linear_grad_cuda)); }
