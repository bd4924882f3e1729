// SPDX-License-Identifier: Apache-2.0
#include "cuda/buffer.cuh"

#include <mutex>

namespace licag3d {
namespace cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr uint64_t kKeptBytes = 256ull << 20;

// The pool of the current device, made at its first use; kept until the process ends.
cudaError_t pool_here(cudaMemPool_t *pool) {
  static std::mutex mutex;
  static cudaMemPool_t pools[kMaxDevices] = {};
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  if (device >= kMaxDevices) return cudaErrorInvalidDevice;
  const std::lock_guard<std::mutex> lock(mutex);
  if (pools[device] == nullptr) {
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t made = nullptr;
    status = cudaMemPoolCreate(&made, &properties);
    if (status != cudaSuccess) return status;
    uint64_t kept = kKeptBytes;
    status = cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &kept);
    if (status != cudaSuccess) return status;
    pools[device] = made;
  }
  *pool = pools[device];
  return cudaSuccess;
}

}  // namespace

cudaError_t take_memory(void **memory, size_t bytes, cudaStream_t stream) {
  cudaMemPool_t pool = nullptr;
  const cudaError_t status = pool_here(&pool);
  return status != cudaSuccess ? status : cudaMallocFromPoolAsync(memory, bytes, pool, stream);
}

}  // namespace cuda
}  // namespace licag3d
