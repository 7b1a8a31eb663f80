// encore._build_info: what this extension was built with, so that a mismatch can be told in one sentence.
// No op lives here; they register themselves with the dispatcher. Only the version header of torch is read.

#include <pybind11/pybind11.h>
#include <torch/version.h>

#ifndef ENCORE_FLAGS
#define ENCORE_FLAGS ""
#endif
#ifndef ENCORE_CUDA_ARCHS
#define ENCORE_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace {

constexpr const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

constexpr const char* machine() {
#if defined(__x86_64__) || defined(_M_X64)
  return "x86_64";
#elif defined(__aarch64__) || defined(_M_ARM64)
  return "aarch64";
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["flags"] = ENCORE_FLAGS;
  info["machine"] = machine();
  info["cuda_archs"] = ENCORE_CUDA_ARCHS;  // "" where no CUDA code was compiled
#ifdef _GLIBCXX_USE_CXX11_ABI
  info["cxx11_abi"] = static_cast<bool>(_GLIBCXX_USE_CXX11_ABI);
#else
  info["cxx11_abi"] = true;  // libc++ and MSVC know no other
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "What Encore's native code was built with.";
  m.def("build_info", &build_info, "torch, compiler, cxx_standard, flags, machine, cuda_archs, cxx11_abi");
}
