// SPDX-License-Identifier: Apache-2.0
// Tri-plane operators on CUDA: buffers, launches and entry points; the kernels are in triplane_kernels.cuh. Memory beyond
// inputs and outputs: two channel-padded copies of the planes and at most kPartialBytes of weight sums.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "cuda/error.h"
#include "cuda/launch.cuh"
#include "cuda/triplane_kernels.cuh"
#include "include/licag3d_triplane.h"

namespace licag3d {
namespace cuda {
namespace {

constexpr int64_t kPartialBytes = 64 << 20;
constexpr int kMaxChannels = 64;  // features and their gradient must fit into registers

// (3, C, R, R) to (3, R, R, padded) and back; a thread per value of the padded side, channels fastest.
__global__ void repack_kernel(const void *planes, int is_half, int channels, int padded, int64_t texels, float *out) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < 3 * texels * padded;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t c = i % padded, texel = i / padded % texels, plane = i / padded / texels;
    const int64_t from = (plane * channels + c) * texels + texel;
    out[i] = c >= channels ? 0.0f
             : is_half     ? __half2float(static_cast<const __half *>(planes)[from])
                           : static_cast<const float *>(planes)[from];
  }
}

__global__ void unpack_kernel(const float *gradient, int channels, int padded, int64_t texels, float *out) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < 3 * texels * channels;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t texel = i % texels, c = i / texels % channels, plane = i / texels / channels;
    out[i] = gradient[(plane * texels + texel) * padded + c];
  }
}

// Padded weights in one array, laid out as the weight gradients are.
__global__ void pack_weights_kernel(licag3d_triplane field, int padded, int hidden, float *out) {
  const int64_t size = weight_floats(padded, hidden);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t j = i / padded, c = i % padded, k = i - static_cast<int64_t>(hidden) * padded;
    float value = 0.0f;
    if (k < 0)
      value = j < field.hidden && c < field.channels ? field.weight_1[j * field.channels + c] : 0.0f;
    else if (k < hidden)
      value = k < field.hidden ? field.bias_1[k] : 0.0f;
    else if (k < 2 * hidden)
      value = k - hidden < field.hidden ? field.weight_2[k - hidden] : 0.0f;
    else if (k == 2 * hidden)
      value = field.bias_2[0];
    out[i] = value;
  }
}

// Sum over the blocks in order, in double: the same bits every time.
__global__ void sum_weights_kernel(const float *partial, int blocks, int channels, int padded, int real_hidden,
                                   int hidden, licag3d_triplane_gradients out) {
  const int64_t size = weight_floats(padded, hidden);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    double sum = 0.0;
    for (int b = 0; b < blocks; ++b) sum += partial[b * size + i];
    const int64_t j = i / padded, c = i % padded, k = i - static_cast<int64_t>(hidden) * padded;
    const float value = static_cast<float>(sum);
    if (k < 0) {
      if (j < real_hidden && c < channels) out.weight_1[j * channels + c] = value;
    } else if (k < hidden) {
      if (k < real_hidden) out.bias_1[k] = value;
    } else if (k < 2 * hidden) {
      if (k - hidden < real_hidden) out.weight_2[k - hidden] = value;
    } else if (k == 2 * hidden) {
      out.bias_2[0] = value;
    }
  }
}

// Device memory of one call, freed on its stream.
class Buffer {
 public:
  Buffer(cudaStream_t stream, int64_t floats) : stream_(stream) {
    status_ =
        floats > 0 ? cudaMallocAsync(reinterpret_cast<void **>(&memory_), floats * sizeof(float), stream) : cudaSuccess;
  }
  Buffer(const Buffer &) = delete;
  ~Buffer() {
    if (memory_ != nullptr) cudaFreeAsync(memory_, stream_);
  }
  float *get() const { return memory_; }
  cudaError_t status() const { return status_; }

 private:
  cudaStream_t stream_;
  float *memory_ = nullptr;
  cudaError_t status_;
};

template <int kChannels>
class Operator {
 public:
  Operator(const licag3d_run &run, const licag3d_triplane &field)
      : field_(field),
        stream_(static_cast<cudaStream_t>(run.stream)),
        hidden_((field.hidden + 15) / 16 * 16),
        texels_(static_cast<int64_t>(field.resolution) * field.resolution),
        planes_(stream_, 3 * texels_ * kChannels),
        weights_(stream_, weight_floats(kChannels, hidden_)),
        box_(make_box(field.box_center_mm, field.box_size_mm, field.resolution)) {
    cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, run.device);
  }

  // grad_values == nullptr: forward.
  int32_t run(Work work, bool rays_per_item, float *values, const float *grad_values,
              const licag3d_triplane_gradients *gradients) {
    const bool is_ray = work.points == nullptr;
    const bool backward = grad_values != nullptr;
    const int64_t partial_floats = weight_floats(kChannels, hidden_);
    const int64_t per_block = is_ray ? kWarps : kBlockThreads;
    int64_t blocks =
        std::max<int64_t>(1, std::min<int64_t>((work.count + per_block - 1) / per_block, 8LL * processors_));
    if (!backward) blocks = std::max<int64_t>(1, std::min<int64_t>((work.count + per_block - 1) / per_block, 1 << 20));
    const bool want_weights = backward && gradients->weight_1 != nullptr,
               want_planes = backward && gradients->planes != nullptr;
    if (want_weights)
      blocks = std::max<int64_t>(1, std::min<int64_t>(blocks, kPartialBytes / (partial_floats * sizeof(float))));
    Buffer slices(stream_, want_planes ? 3 * texels_ * kChannels : 0),
        partial(stream_, want_weights ? blocks * partial_floats : 0);
    for (const cudaError_t status : {planes_.status(), weights_.status(), slices.status(), partial.status()})
      if (status != cudaSuccess) return cuda_check(status);
    const size_t shared = want_weights ? sizeof(BlockShared<kChannels>) : 0;
    if (want_weights) {
      const int bytes = static_cast<int>(shared);
      cudaError_t status = is_ray ? cudaFuncSetAttribute(render_backward_kernel<kChannels>,
                                                         cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)
                                  : cudaFuncSetAttribute(query_backward_kernel<kChannels>,
                                                         cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      if (status != cudaSuccess) return cuda_check(status);
      cudaMemsetAsync(partial.get(), 0, blocks * partial_floats * sizeof(float), stream_);
    }
    const int64_t all_rays = is_ray ? work.rays.count : work.count;
    if (backward && gradients->origin) cudaMemsetAsync(gradients->origin, 0, 3 * all_rays * sizeof(float), stream_);
    if (backward && gradients->direction)
      cudaMemsetAsync(gradients->direction, 0, 3 * all_rays * sizeof(float), stream_);
    pack_weights_kernel<<<blocks_for(partial_floats), kThreads, 0, stream_>>>(field_, kChannels, hidden_,
                                                                              weights_.get());
    const float *bias_1 = weights_.get() + static_cast<int64_t>(hidden_) * kChannels;
    const PointField field = {planes_.get(),        weights_.get(),    bias_1, bias_1 + hidden_,
                              bias_1 + 2 * hidden_, field_.resolution, hidden_};
    const int64_t plane_bytes = 3 * field_.channels * texels_ * (field_.planes_are_half ? 2 : 4);
    for (int64_t b = 0; b < field_.batch; ++b) {
      repack_kernel<<<blocks_for(3 * texels_ * kChannels), kThreads, 0, stream_>>>(
          static_cast<const char *>(field_.planes) + b * plane_bytes, field_.planes_are_half, field_.channels,
          kChannels, texels_, planes_.get());
      work.first_ray = rays_per_item ? b * work.count : 0;
      if (want_planes) cudaMemsetAsync(slices.get(), 0, 3 * texels_ * kChannels * sizeof(float), stream_);
      const PointGradients targets = {slices.get(), partial.get(), backward ? gradients->origin : nullptr,
                                      backward ? gradients->direction : nullptr};
      const float *grads = backward ? grad_values + b * work.count : nullptr;
      float *out = backward ? nullptr : values + b * work.count;
      if (work.count == 0) {
      } else if (backward && is_ray) {
        render_backward_kernel<kChannels>
            <<<blocks, kBlockThreads, shared, stream_>>>(field, box_, work, grads, targets);
      } else if (backward) {
        query_backward_kernel<kChannels><<<blocks, kBlockThreads, shared, stream_>>>(field, box_, work, grads, targets);
      } else if (is_ray) {
        render_kernel<kChannels><<<blocks, kBlockThreads, 0, stream_>>>(field, box_, work, out);
      } else {
        query_kernel<kChannels><<<blocks, kBlockThreads, 0, stream_>>>(field, box_, work, out);
      }
      if (want_planes)
        unpack_kernel<<<blocks_for(3 * texels_ * field_.channels), kThreads, 0, stream_>>>(
            slices.get(), field_.channels, kChannels, texels_, gradients->planes + b * 3 * field_.channels * texels_);
    }
    if (want_weights)
      sum_weights_kernel<<<blocks_for(partial_floats), kThreads, 0, stream_>>>(
          partial.get(), static_cast<int>(blocks), field_.channels, kChannels, field_.hidden, hidden_, *gradients);
    return cuda_check(cudaGetLastError());
  }

 private:
  const licag3d_triplane &field_;
  cudaStream_t stream_;
  int hidden_;
  int64_t texels_;
  Buffer planes_, weights_;
  TriplaneBox box_;
  int processors_ = 1;
};

int32_t dispatch(const licag3d_run &run, const licag3d_triplane &field, const Work &work, bool rays_per_item,
                 float *values, const float *grad_values, const licag3d_triplane_gradients *gradients) {
  if (field.batch < 0 || field.channels < 1 || field.channels > kMaxChannels || field.hidden < 1 ||
      field.resolution < 1 || !(field.box_size_mm > 0) || work.samples < 1)
    return cuda_fail(LICAG3D_BAD_ARGUMENT, "tri-plane sizes are out of range (at most 64 channels on CUDA)");
  const cudaError_t status = cudaSetDevice(run.device);
  if (status != cudaSuccess) return cuda_check(status);
  if (field.channels <= 16) return Operator<16>(run, field).run(work, rays_per_item, values, grad_values, gradients);
  if (field.channels <= 32) return Operator<32>(run, field).run(work, rays_per_item, values, grad_values, gradients);
  return Operator<64>(run, field).run(work, rays_per_item, values, grad_values, gradients);
}

Work ray_work(const licag3d_triplane &field, const licag3d_rays &rays, bool per_item, int32_t samples) {
  return {rays, nullptr, 0, per_item && field.batch > 0 ? rays.count / field.batch : rays.count, samples, 0};
}

Work point_work(const void *points, int32_t are_double, int64_t count) { return {{}, points, 0, count, 1, are_double}; }

}  // namespace
}  // namespace cuda
}  // namespace licag3d

using namespace licag3d::cuda;

extern "C" {

int32_t licag3d_cuda_render_triplane(const licag3d_run *run, const licag3d_triplane *field, const licag3d_rays *rays,
                                     int32_t rays_per_item, int32_t samples, float *values) {
  return dispatch(*run, *field, ray_work(*field, *rays, rays_per_item, samples), rays_per_item, values, nullptr,
                  nullptr);
}

int32_t licag3d_cuda_render_triplane_backward(const licag3d_run *run, const licag3d_triplane *field,
                                              const licag3d_rays *rays, int32_t rays_per_item, int32_t samples,
                                              const float *grad_values, const licag3d_triplane_gradients *gradients) {
  return dispatch(*run, *field, ray_work(*field, *rays, rays_per_item, samples), rays_per_item, nullptr, grad_values,
                  gradients);
}

int32_t licag3d_cuda_query_triplane(const licag3d_run *run, const licag3d_triplane *field, const void *points,
                                    int32_t points_are_double, int64_t count, float *values) {
  return dispatch(*run, *field, point_work(points, points_are_double, count), false, values, nullptr, nullptr);
}

int32_t licag3d_cuda_query_triplane_backward(const licag3d_run *run, const licag3d_triplane *field, const void *points,
                                             int32_t points_are_double, int64_t count, const float *grad_values,
                                             const licag3d_triplane_gradients *gradients) {
  return dispatch(*run, *field, point_work(points, points_are_double, count), false, nullptr, grad_values, gradients);
}

}  // extern "C"
