// What the linear_grad family computes, on whatever device: no torch header here, so that a kernel can be compiled and
// tested alone.
//
// For inputs A [N, T, I] and output gradients B [N, T, O] of a linear layer, the gradient of sample n is
// G_n = B_n^T A_n, [O, I]. It is never stored: what is asked for is added up tile by tile, while the tile of G_n is in
// registers or cache. With g = G_n[o, i]:
//
//   fisher[o, i]   += scale[n] * g * g         sq_norms[n]  = sum over o, i of g * g
//   total[o, i]    += weight[n] * g            dots[n, m]   = sum over o, i of g * directions[m, o, i]
#pragma once

#include <cstdint>

namespace encore {

enum class DType : int32_t { float32 = 0, bfloat16 = 1, float16 = 2 };

struct LinearGrad {
  // Operands: A and B may differ in type. The last dimension is contiguous; strides are in elements, any sign or zero.
  const void* a;
  const void* b;
  DType a_type, b_type;
  int64_t n, t, i, o;  // any of them may be 0
  int64_t a_stride_n, a_stride_t, b_stride_n, b_stride_t;

  // Results, float32; a null pointer is not computed. Rows of [O, I] results may be strided (columns are contiguous).
  float* fisher;
  int64_t fisher_stride;
  const float* scale;  // [N]; null is all ones
  float* total;
  int64_t total_stride;
  const float* weight;  // [N]; null is all ones
  float* sq_norms;      // [N], overwritten
  float* dots;          // [N, M], overwritten
  const float* directions;  // [M, O, I], contiguous
  int64_t m;

  bool deterministic;  // equal calls give equal bits; a kernel that always does may ignore it
};

}  // namespace encore
