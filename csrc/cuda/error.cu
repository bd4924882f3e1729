// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "cuda/error.h"
#include "include/licag3d.h"

namespace {
thread_local char g_text[256] = "";
}

namespace licag3d {
namespace cuda {

int32_t cuda_fail(int32_t status, const char *text) {
  std::snprintf(g_text, sizeof(g_text), "%s", text);
  return status;
}

int32_t cuda_check(cudaError_t status) {
  if (status == cudaSuccess) return LICAG3D_OK;
  cudaGetLastError();  // the next call starts clean
  return cuda_fail(status == cudaErrorMemoryAllocation ? LICAG3D_OUT_OF_MEMORY : LICAG3D_DEVICE_ERROR,
                   cudaGetErrorString(status));
}

}  // namespace cuda
}  // namespace licag3d

extern "C" {

int32_t licag3d_cuda_abi_version(void) { return LICAG3D_ABI_VERSION; }

const char *licag3d_cuda_last_error(void) { return g_text; }

}  // extern "C"
