// SPDX-License-Identifier: Apache-2.0
// Errors of the CUDA half: a status code, and a text kept per thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace licag3d {
namespace cuda {

// Remembers the text for licag3d_cuda_last_error() and returns status.
int32_t cuda_fail(int32_t status, const char *text);
// LICAG3D_OK, or the CUDA error with its text remembered.
int32_t cuda_check(cudaError_t status);

}  // namespace cuda
}  // namespace licag3d
