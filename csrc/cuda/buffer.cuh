// SPDX-License-Identifier: Apache-2.0
// Device memory of one call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace licag3d {
namespace cuda {

// Memory in the order of the stream, from a pool of our own that keeps up to 256 MiB for the next call (the device's
// default pool gives all back whenever somebody waits, and mapping it again takes longer than many a kernel).
cudaError_t take_memory(void **memory, size_t bytes, cudaStream_t stream);

// Taken and given back in the order of the stream: no synchronisation, and a captured graph holds both as nodes. Zero
// bytes take nothing.
class Buffer {
 public:
  Buffer(cudaStream_t stream, int64_t bytes) : stream_(stream) {
    if (bytes > 0) status_ = take_memory(&memory_, static_cast<size_t>(bytes), stream);
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() {
    if (memory_ != nullptr) cudaFreeAsync(memory_, stream_);
  }
  template <class Value>
  Value *as() const {
    return static_cast<Value *>(memory_);
  }
  cudaError_t status() const { return status_; }

 private:
  cudaStream_t stream_;
  void *memory_ = nullptr;
  cudaError_t status_ = cudaSuccess;
};

}  // namespace cuda
}  // namespace licag3d
