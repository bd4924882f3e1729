// SPDX-License-Identifier: Apache-2.0
// Launch sizes and the stream of a call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/error.h"
#include "include/licag3d.h"

namespace licag3d {

// Status of the launches so far on this thread; asynchronous faults show up at the caller's next synchronisation.
inline int32_t cuda_status() { return cuda::cuda_check(cudaGetLastError()); }

constexpr int kThreads = 128;

// Blocks for a grid-stride loop: enough to fill any device, bounded so that a launch never fails for its size.
inline int blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 65536 ? (blocks > 0 ? blocks : 1) : 65536);
}

inline cudaStream_t stream_of(const licag3d_run *run) { return static_cast<cudaStream_t>(run->stream); }

}  // namespace licag3d
