// SPDX-License-Identifier: Apache-2.0
// The C ABI of the native core: plain structs, raw pointers, element strides, one stream. The only public header.
//
// Every function returns 0, or an error code with a text in licag3d_last_error(). Arguments are checked in Python
// (licag3d/ops/*.py); the checks here only keep a wrong call from reading outside memory. liblicag3d holds the CPU
// functions, liblicag3d_cuda the same functions with the prefix licag3d_cuda_; there all pointers are device pointers.
//
// An operator adds its own section (structs and functions) in a header licag3d_<operator>.h beside this one.
#ifndef LICAG3D_H
#define LICAG3D_H

#include <stdint.h>

#define LICAG3D_ABI_VERSION 1

#if defined(_WIN32)
#define LICAG3D_API __declspec(dllexport)
#else
#define LICAG3D_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum licag3d_status {
  LICAG3D_OK = 0,
  LICAG3D_BAD_ARGUMENT = 1,
  LICAG3D_OUT_OF_MEMORY = 2,
  LICAG3D_DEVICE_ERROR = 3,
};

// How to run: threads on the CPU (0 = all cores); on CUDA the device and its stream.
typedef struct licag3d_run {
  int32_t threads;
  int32_t device;
  void *stream;
} licag3d_run;

// Rays from origin to origin + direction, world mm. origin holds ceil(count / origin_group) rows: that many consecutive
// rays share one (a view has one source). Both are float32, or float64 where is_double is set.
// image_cols > 0 says that rays come in image order, rows of that many pixels; it only helps speed.
typedef struct licag3d_rays {
  const void *origin;
  const void *direction;
  int64_t count;
  int64_t origin_group;
  int32_t is_double;
  int32_t image_cols;
} licag3d_rays;

// ABI number, package version, and the name of the instruction set in use ("plain", "avx2", "avx512").
LICAG3D_API int32_t licag3d_abi_version(void);
LICAG3D_API const char *licag3d_version(void);
LICAG3D_API const char *licag3d_isa(void);
// Choose the instruction set; NULL or "" means the best one here. Fails for one that this processor or build lacks.
LICAG3D_API int32_t licag3d_set_isa(const char *name);
// Text of the last error of the calling thread, never NULL.
LICAG3D_API const char *licag3d_last_error(void);

LICAG3D_API int32_t licag3d_cuda_abi_version(void);
LICAG3D_API const char *licag3d_cuda_last_error(void);

#ifdef __cplusplus
}
#endif

#endif  // LICAG3D_H
