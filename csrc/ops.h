// What the registrations of CPU and CUDA kernels share: from the dispatcher's arguments to a LinearGrad. Through torch's
// stable ABI: one library serves many versions of torch. Schemas and twins are in src/encore/ops/linear_grad.py.
#pragma once

#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))  // 2.10, the oldest torch it runs with
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <tuple>

#include "linear_grad.h"

namespace encore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor>;

inline bool is_float(const Tensor& x) {
  const auto type = x.scalar_type();
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Double;
}

// On the device of `like`; a size of -1 fits any.
inline bool has_shape(const MaybeTensor& x, const Tensor& like, std::initializer_list<int64_t> shape) {
  if (!x) return true;
  if (x->device() != like.device() || !is_float(*x) || x->dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t d = 0;
  for (const int64_t size : shape)
    if (const int64_t found = x->size(d++); size != -1 && found != size) return false;
  return true;
}

inline bool is_double(const MaybeTensor& x) { return x && x->scalar_type() == ScalarType::Double; }

// Whether the rows of an [O, I] result can be added to as they lie.
inline bool is_accumulator(const MaybeTensor& x) {
  return !x || (x->scalar_type() == ScalarType::Float && (x->size(1) <= 1 || x->stride(1) == 1) &&
                (x->size(0) <= 1 || x->stride(0) >= x->size(1)));
}

inline DType type_of(const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float) return DType::float32;
  return x.scalar_type() == ScalarType::BFloat16 ? DType::bfloat16 : DType::float16;
}

inline Tensor with_contiguous_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

inline MaybeTensor as_contiguous_floats(const MaybeTensor& x) {
  if (!x) return x;
  return torch::stable::contiguous(torch::stable::to(*x, ScalarType::Float));
}

inline const float* floats(const MaybeTensor& x) { return x ? static_cast<const float*>(x->const_data_ptr()) : nullptr; }
inline float* mutable_floats(const MaybeTensor& x) { return x ? static_cast<float*>(x->mutable_data_ptr()) : nullptr; }

// What no kernel takes, the twin computes.
inline Results call_twin(const Tensor& inputs, const Tensor& grads, const MaybeTensor& fisher, const MaybeTensor& scale,
                  const MaybeTensor& total, const MaybeTensor& weight, const MaybeTensor& directions, bool norms) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 8> stack{from(inputs), from(grads),  from(fisher),     from(scale),
                                    from(total),  from(weight), from(directions), from(norms)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("encore::linear_grad_twin_", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Checks and lays out the arguments of `linear_grad_`, and lets `run(LinearGrad, inputs)` compute; what no kernel takes
// goes to the twin.
template <class Run>
Results with_linear_grad(Tensor inputs, Tensor grads, MaybeTensor fisher, MaybeTensor scale, MaybeTensor total,
                         MaybeTensor weight, MaybeTensor directions, bool norms, const Run& run) {
  // The Python functions say which argument is wrong; here no wrong one may reach a kernel.
  STD_TORCH_CHECK(has_shape(inputs, inputs, {-1, -1, -1}) && has_shape(grads, inputs, {inputs.size(0), inputs.size(1), -1}),
                  "encore::linear_grad_: inputs [N, T, I] and grads [N, T, O] are needed, of float types, on one device");
  const int64_t n = inputs.size(0), i = inputs.size(2), o = grads.size(2);
  STD_TORCH_CHECK(has_shape(fisher, inputs, {o, i}) && has_shape(scale, inputs, {n}) && has_shape(total, inputs, {o, i}) &&
                      has_shape(weight, inputs, {n}) && has_shape(directions, inputs, {-1, o, i}),
                  "encore::linear_grad_: fisher, total [O, I], scale, weight [N] and directions [M, O, I] are needed, ",
                  "of float types, on one device");
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

  LinearGrad g{};
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
  run(g, inputs);
  return {sq_norms, dots};
}

}  // namespace encore
