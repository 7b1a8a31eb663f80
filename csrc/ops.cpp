// Registers the kernels with torch's dispatcher, through its stable ABI: one library serves many versions of torch.
// Schemas, checks and twins are in src/encore/ops/linear_grad.py.

#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))  // 2.10, the oldest torch it runs with
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <initializer_list>
#include <optional>
#include <tuple>

#include "cpu/linear_grad.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor>;

bool is_float(const Tensor& x) {
  const auto type = x.scalar_type();
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Double;
}

bool has_shape(const MaybeTensor& x, std::initializer_list<int64_t> shape) {  // -1 fits any size
  if (!x) return true;
  if (!x->is_cpu() || !is_float(*x) || x->dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t d = 0;
  for (const int64_t size : shape)
    if (const int64_t found = x->size(d++); size != -1 && found != size) return false;
  return true;
}

bool is_double(const MaybeTensor& x) { return x && x->scalar_type() == ScalarType::Double; }

// Whether the rows of an [O, I] result can be added to as they lie.
bool is_accumulator(const MaybeTensor& x) {
  return !x || (x->scalar_type() == ScalarType::Float && (x->size(1) <= 1 || x->stride(1) == 1) &&
                (x->size(0) <= 1 || x->stride(0) >= x->size(1)));
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

// What no kernel takes, the twin computes.
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

// Pieces go to whichever of ATen's threads is free: on a busy machine they are not equally fast.
void parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t piece = std::max(grain, count / (8 * threads));
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, std::min(threads, (count + piece - 1) / piece), 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(piece)) < count;) body(begin, std::min(begin + piece, count));
  });
}

Results linear_grad_cpu(Tensor inputs, Tensor grads, MaybeTensor fisher, MaybeTensor scale, MaybeTensor total,
                        MaybeTensor weight, MaybeTensor directions, bool norms) {
  // The Python functions say which argument is wrong; here no wrong one may reach a kernel.
  STD_TORCH_CHECK(has_shape(inputs, {-1, -1, -1}) && has_shape(grads, {inputs.size(0), inputs.size(1), -1}),
                  "encore::linear_grad_: inputs [N, T, I] and grads [N, T, O] are needed, of float types, on the CPU");
  const int64_t n = inputs.size(0), i = inputs.size(2), o = grads.size(2);
  STD_TORCH_CHECK(has_shape(fisher, {o, i}) && has_shape(scale, {n}) && has_shape(total, {o, i}) &&
                      has_shape(weight, {n}) && has_shape(directions, {-1, o, i}),
                  "encore::linear_grad_: fisher, total [O, I], scale, weight [N] and directions [M, O, I] are needed, ",
                  "of float types, on the CPU");
  if (is_double(inputs) || is_double(grads) || is_double(directions) || !is_accumulator(fisher) ||
      !is_accumulator(total))
    return call_twin(inputs, grads, fisher, scale, total, weight, directions, norms);

  inputs = with_contiguous_rows(inputs);
  grads = with_contiguous_rows(grads);
  scale = as_contiguous_floats(scale);
  weight = as_contiguous_floats(weight);
  directions = as_contiguous_floats(directions);
  const int64_t m = directions ? directions->size(0) : 0;
  Tensor sq_norms = torch::stable::new_empty(inputs, {norms ? n : 0}, ScalarType::Float);
  Tensor dots = torch::stable::new_empty(inputs, {n, m}, ScalarType::Float);

  encore::LinearGrad g{};
  g.a = inputs.const_data_ptr();
  g.b = grads.const_data_ptr();
  g.a_type = type_of(inputs);
  g.b_type = type_of(grads);
  g.n = n;
  g.t = inputs.size(1);
  g.i = i;
  g.o = o;
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
  encore::cpu::linear_grad(g, encore::cpu::choose_isa(), parallel);
  return {sq_norms, dots};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(encore, CPU, m) { m.impl("linear_grad_", TORCH_BOX(&linear_grad_cpu)); }
