// Reads an element of any input type as float32.
#pragma once

#include "../linear_grad.h"
#include "ptx.h"

namespace encore::cuda {

ENCORE_DEVICE float read(const void* from, DType type, int64_t at) {
  switch (type) {
    case DType::bfloat16:
      return widen(Bf16{}, static_cast<const uint16_t*>(from)[at]);
    case DType::float16:
      return widen(Fp16{}, static_cast<const uint16_t*>(from)[at]);
    default:
      return static_cast<const float*>(from)[at];
  }
}

}  // namespace encore::cuda
