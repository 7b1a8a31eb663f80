// Registers the kernels with torch's dispatcher, through its stable ABI: one library serves many versions of torch.
// Schemas, checks and twins are in src/encore/ops/linear_grad.py.

#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))  // 2.10, the oldest torch it runs with
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "cpu/linear_grad.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor>;

bool is_operand(const Tensor& x) {
  const auto type = x.scalar_type();
  return x.is_cpu() && x.dim() == 3 &&
         (type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half);
}

bool is_factor(const MaybeTensor& x, int64_t count) {
  return !x || (x->is_cpu() && x->dim() == 1 && x->size(0) == count);
}

// An [O, I] result whose rows can be written to: of another type or layout, the twin knows how to add to it.
bool is_accumulator(const MaybeTensor& x, int64_t rows, int64_t columns) {
  return !x || (x->is_cpu() && x->scalar_type() == ScalarType::Float && x->dim() == 2 && x->size(0) == rows &&
                x->size(1) == columns && (columns <= 1 || x->stride(1) == 1) &&
                (rows <= 1 || x->stride(0) >= columns));
}

bool are_directions(const MaybeTensor& x, int64_t rows, int64_t columns) {
  return !x || (x->is_cpu() && x->scalar_type() != ScalarType::Double && x->dim() == 3 && x->size(1) == rows &&
                x->size(2) == columns);
}

encore::DType type_of(const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float) return encore::DType::float32;
  return x.scalar_type() == ScalarType::BFloat16 ? encore::DType::bfloat16 : encore::DType::float16;
}

Tensor with_contiguous_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

MaybeTensor as_contiguous_floats(const MaybeTensor& x) {
  if (!x) return x;
  return torch::stable::contiguous(torch::stable::to(*x, ScalarType::Float));
}

const float* floats(const MaybeTensor& x) { return x ? static_cast<const float*>(x->const_data_ptr()) : nullptr; }
float* mutable_floats(const MaybeTensor& x) { return x ? static_cast<float*>(x->mutable_data_ptr()) : nullptr; }

// What no kernel takes, the twin computes, or refuses with a sentence that says what is wrong.
Results call_twin(const Tensor& inputs, const Tensor& grads, const MaybeTensor& fisher, const MaybeTensor& scale,
                  const MaybeTensor& total, const MaybeTensor& weight, const MaybeTensor& directions, bool norms) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 8> stack{from(inputs), from(grads),  from(fisher),     from(scale),
                                    from(total),  from(weight), from(directions), from(norms)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("encore::linear_grad_twin_", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

Results linear_grad_cpu(Tensor inputs, Tensor grads, MaybeTensor fisher, MaybeTensor scale, MaybeTensor total,
                        MaybeTensor weight, MaybeTensor directions, bool norms) {
  const bool taken = is_operand(inputs) && is_operand(grads) && inputs.size(0) == grads.size(0) &&
                     inputs.size(1) == grads.size(1) && is_factor(scale, inputs.size(0)) &&
                     is_factor(weight, inputs.size(0)) && is_accumulator(fisher, grads.size(2), inputs.size(2)) &&
                     is_accumulator(total, grads.size(2), inputs.size(2)) &&
                     are_directions(directions, grads.size(2), inputs.size(2));
  if (!taken) return call_twin(inputs, grads, fisher, scale, total, weight, directions, norms);

  inputs = with_contiguous_rows(inputs);
  grads = with_contiguous_rows(grads);
  scale = as_contiguous_floats(scale);
  weight = as_contiguous_floats(weight);
  directions = as_contiguous_floats(directions);
  const int64_t n = inputs.size(0), m = directions ? directions->size(0) : 0;
  Tensor sq_norms = torch::stable::new_empty(inputs, {norms ? n : 0}, ScalarType::Float);
  Tensor dots = torch::stable::new_empty(inputs, {n, m}, ScalarType::Float);

  encore::LinearGrad g{};
  g.a = inputs.const_data_ptr();
  g.b = grads.const_data_ptr();
  g.a_type = type_of(inputs);
  g.b_type = type_of(grads);
  g.n = n;
  g.t = inputs.size(1);
  g.i = inputs.size(2);
  g.o = grads.size(2);
  g.a_stride_n = inputs.stride(0);
  g.a_stride_t = inputs.stride(1);
  g.b_stride_n = grads.stride(0);
  g.b_stride_t = grads.stride(1);
  g.fisher = mutable_floats(fisher);
  g.fisher_stride = fisher ? fisher->stride(0) : 0;
  g.scale = floats(scale);
  g.total = mutable_floats(total);
  g.total_stride = total ? total->stride(0) : 0;
  g.weight = floats(weight);
  g.sq_norms = norms ? mutable_floats(sq_norms) : nullptr;
  g.dots = m > 0 ? mutable_floats(dots) : nullptr;
  g.directions = floats(directions);
  g.m = m;
  encore::cpu::linear_grad(g, encore::cpu::choose_isa(), [](int64_t count, int64_t grain, const auto& body) {
    torch::stable::parallel_for(0, count, grain, body);
  });
  return {sq_norms, dots};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(encore, CPU, m) { m.impl("linear_grad_", TORCH_BOX(&linear_grad_cpu)); }
