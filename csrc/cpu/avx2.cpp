// 16 registers of eight floats: 12 hold the tile.
#include "linear_grad.h"

#ifdef __x86_64__
#if defined(ENCORE_BASELINE)  // a test runs this text where the processor lacks the registers
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define ENCORE_ISA avx2
#define ENCORE_ISA_NAME "avx2"
constexpr int64_t kWidth = 8, kRows = 6, kVectors = 2;
#include "tile.h"

#if defined(__clang__) && !defined(ENCORE_BASELINE)
#pragma clang attribute pop
#endif
#endif
