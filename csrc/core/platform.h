// SPDX-License-Identifier: Apache-2.0
// What lets one header serve g++, clang++ and nvcc, and every instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define LICAG3D_HD __host__ __device__ __forceinline__
#else
#define LICAG3D_HD inline __attribute__((always_inline))
#endif

// Core headers are compiled several times with different machine flags. Each copy lives in its own namespace, so that
// the linker can never replace the baseline copy by one that needs AVX-512. Types that cross from one copy to
// another must come from the C ABI headers.
#ifndef LICAG3D_ISA
#define LICAG3D_ISA plain
#endif
#define LICAG3D_CORE_BEGIN \
  namespace licag3d {      \
  namespace LICAG3D_ISA {
#define LICAG3D_CORE_END \
  }                      \
  }
