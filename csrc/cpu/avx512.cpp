// 32 registers of sixteen floats: 28 hold the tile.
#include "linear_grad.h"

#ifdef __x86_64__
#if defined(ENCORE_BASELINE)  // a test runs this text where the processor lacks the registers
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

#define ENCORE_ISA avx512
#define ENCORE_ISA_NAME "avx512"
constexpr int64_t kWidth = 16, kRows = 14, kVectors = 2;
#include "tile.h"

#if defined(__clang__) && !defined(ENCORE_BASELINE)
#pragma clang attribute pop
#endif
#endif
