// encore._native: the module that carries the kernels (they register themselves, see ops.cpp), and says what it was
// built with and which CPU kernel serves. Python's limited API: one library for every Python from 3.11 on.

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>
#include <torch/version.h>

#include <exception>

#include "cpu/linear_grad.h"

#ifndef ENCORE_FLAGS
#define ENCORE_FLAGS ""
#endif
#ifndef ENCORE_CUDA_ARCHS
#define ENCORE_CUDA_ARCHS ""
#endif
#define ENCORE_JOIN(a, b) a##b
#define ENCORE_INIT(name) ENCORE_JOIN(PyInit_, name)

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
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "unknown";
#endif
}

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:l,s:s,s:s,s:s}", "torch", TORCH_VERSION, "compiler", compiler(), "cxx_standard",
                       static_cast<long>(__cplusplus), "flags", ENCORE_FLAGS, "machine", machine(), "cuda_archs",
                       ENCORE_CUDA_ARCHS);  // cuda_archs: "" where no CUDA code was compiled
}

PyObject* cpu_isa(PyObject*, PyObject* sizes) {
  long long t = 0, i = 0, o = 0;
  if (!PyArg_ParseTuple(sizes, "|LLL", &t, &i, &o)) return nullptr;
  encore::LinearGrad grad{};
  grad.t = t, grad.i = i, grad.o = o;
  try {
    return PyUnicode_FromString(encore::cpu::choose_isa(PyTuple_Size(sizes) > 0 ? &grad : nullptr).name);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "torch, compiler, cxx_standard, flags, machine, cuda_archs."},
    {"cpu_isa", cpu_isa, METH_VARARGS,
     "The instruction set of the CPU kernels: amx, avx512, avx2 or portable; of a call in float32, given T, I and O."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", "Encore's kernels, and what they were built with.", -1,
                          methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC ENCORE_INIT(TORCH_EXTENSION_NAME)() { return PyModule_Create(&definition); }
