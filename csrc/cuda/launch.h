// The one entry to the CUDA kernels: chooses among them, and asks its caller for memory. No CUDA header is needed.
#pragma once

#include <cstddef>

#include "../linear_grad.h"

namespace encore::cuda {

// `automatic` takes what the device does best. sm90_single is sm90 without clusters.
enum class Kernel { automatic, simt, sm80, sm90, sm90_single };

// Runs on the current device, in `stream` (a cudaStream_t). Null, or what went wrong in one sentence (valid until the thread's next
// call). Outputs are defined as in LinearGrad. `workspace` holds at least `linear_grad_workspace` bytes, 256-byte
// aligned; it is free again when the stream has come past the call.
const char* linear_grad(const LinearGrad& grad, void* workspace, size_t bytes, void* stream,
                        Kernel kernel = Kernel::automatic);

// The bytes that `linear_grad` needs for the same arguments on the same device.
const char* linear_grad_workspace(const LinearGrad& grad, size_t& bytes, Kernel kernel = Kernel::automatic);

// Which kernel the current device would use for this, as a word and the reason: "sm90: 128x192 tiles, clusters of 2".
const char* linear_grad_describe(const LinearGrad& grad, char* text, size_t size, Kernel kernel = Kernel::automatic);

}  // namespace encore::cuda
