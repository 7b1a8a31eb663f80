// Stands in for CUDA's header: the kernels of csrc/cuda as plain C++, run by emulator.h. Compile with -DENCORE_EMULATED.
#pragma once
#include "emulator.h"
