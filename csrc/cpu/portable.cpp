// Any processor: vectors of four floats, which SSE2 and NEON have.
#include "linear_grad.h"

#define ENCORE_ISA portable
#define ENCORE_ISA_NAME "portable"
constexpr int64_t kWidth = 4, kRows = 6, kVectors = 2;
#include "tile.h"
