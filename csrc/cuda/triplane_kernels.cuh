// SPDX-License-Identifier: Apache-2.0
// Kernels of the tri-plane operators. Forward: one warp per ray, one lane per sample. Backward: the same, with the
// gradient of the planes summed by atomics (vectors of four on sm_90) into a channel-last buffer, and the decoder
// weights summed per block without atomics, then over blocks in a fixed order. Included by triplane.cu alone.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "core/rays.h"
#include "core/triplane.h"
#include "core/triplane_block.h"
#include "include/licag3d_triplane.h"

namespace licag3d {
namespace cuda {
namespace {

constexpr int kWarp = 32, kWarps = kBlockThreads / kWarp;

// What a kernel integrates: rays, or points (then samples is 1 and a "ray" is 32 points).
struct Work {
  licag3d_rays rays;
  const void *points;
  int64_t first_ray;  // of this item of the batch
  int64_t count;      // rays or points
  int32_t samples;
  int32_t points_are_double;
};

struct PointGradients {
  float *planes;   // channel-last
  float *weights;  // one set per block
  float *origin, *direction;
};

__device__ bool place_point(const TriplaneBox &box, const Work &work, int64_t i, float *coordinate) {
  bool inside = i < work.count;
  for (int a = 0; a < 3 && i < work.count; ++a) {
    const double x = work.points_are_double ? static_cast<const double *>(work.points)[3 * i + a]
                                            : static_cast<double>(static_cast<const float *>(work.points)[3 * i + a]);
    inside = inside && x >= box.low[a] && x <= box.high[a];
    coordinate[a] = static_cast<float>(to_texel(box, a, x));
  }
  return inside;
}

__device__ void place_on_ray(const ClippedRay &ray, int sample, float per_sample, float *coordinate) {
  const float fraction = (static_cast<float>(sample) + 0.5f) * per_sample;
  for (int a = 0; a < 3; ++a) coordinate[a] = ray.start[a] + fraction * ray.delta[a];
}

__device__ float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

struct AtomicAdd4 {
  __device__ void operator()(float *to, const Float4 &value) const {
#if __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float4 *>(to), make_float4(value.v[0], value.v[1], value.v[2], value.v[3]));
#else
    for (int i = 0; i < 4; ++i) atomicAdd(to + i, value.v[i]);
#endif
  }
};

template <int kChannels>
__global__ void __launch_bounds__(kBlockThreads)
    render_kernel(PointField field, TriplaneBox box, Work work, float *values) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  for (int64_t i = warp; i < work.count; i += static_cast<int64_t>(gridDim.x) * kWarps) {
    const RayMm source = load_ray(work.rays, work.first_ray + i);
    const ClippedRay ray = clip_ray(box, source.origin, source.direction);
    float sum = 0.0f;
    for (int k = lane; ray.hit && k < work.samples; k += kWarp) {
      float coordinate[3], features[kChannels];
      place_on_ray(ray, k, 1.0f / static_cast<float>(work.samples), coordinate);
      gather_point<kChannels>(field, locate_point(field.resolution, coordinate), features);
      sum += softplus_one(decode_point<kChannels>(field, features));
    }
    sum = warp_sum(sum);
    if (lane == 0)
      values[i] = ray.hit ? sum * static_cast<float>(step_mm(ray, work.samples)) : is_finite(source) ? 0.0f : NAN;
  }
}

template <int kChannels>
__global__ void __launch_bounds__(kBlockThreads)
    query_kernel(PointField field, TriplaneBox box, Work work, float *values) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; i < work.count;
       i += static_cast<int64_t>(gridDim.x) * kBlockThreads) {
    float coordinate[3], features[kChannels], value = 0.0f;
    if (place_point(box, work, i, coordinate)) {
      gather_point<kChannels>(field, locate_point(field.resolution, coordinate), features);
      value = softplus_one(decode_point<kChannels>(field, features));
    }
    values[i] = value;
  }
}

// One step of a block: 128 samples, decoded and their gradients handed out. All threads of the block must call it.
template <int kChannels>
__device__ void backward_step(const PointField &field, bool active, const float *coordinate, float weight,
                              const PointGradients &gradients, BlockShared<kChannels> *shared, float *block_weights,
                              ThreadSample<kChannels> &sample) {
  block_decode<kChannels>(field, active, coordinate, weight, sample, shared, threadIdx.x);
  for (int first = 0; first < field.hidden; first += kStage) {
    block_stage<kChannels>(field, active, first, sample, shared, threadIdx.x);
    if (shared == nullptr) continue;
    __syncthreads();
    block_reduce<kChannels>(*shared, field.hidden, first, block_weights, threadIdx.x);
    __syncthreads();
  }
  if (active && gradients.planes != nullptr)
    scatter_point<kChannels>(gradients.planes, field.resolution, sample.cell, sample.features_grad, AtomicAdd4());
}

template <int kChannels>
__global__ void __launch_bounds__(kBlockThreads)
    render_backward_kernel(PointField field, TriplaneBox box, Work work, const float *grad_values,
                           PointGradients gradients) {
  extern __shared__ __align__(16) unsigned char memory[];
  BlockShared<kChannels> *shared = gradients.weights ? reinterpret_cast<BlockShared<kChannels> *>(memory) : nullptr;
  float *block_weights = gradients.weights + blockIdx.x * weight_floats(kChannels, field.hidden);
  const int lane = threadIdx.x % kWarp;
  const float per_sample = 1.0f / static_cast<float>(work.samples);
  // The trip counts are the same for all warps of a block: the barriers inside need every thread.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kWarps; base < work.count;
       base += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t i = base + threadIdx.x / kWarp;
    const bool exists = i < work.count;
    RayMm source = {};
    ClippedRay ray = {};
    float grad = 0.0f;
    if (exists) {
      source = load_ray(work.rays, work.first_ray + i);
      ray = clip_ray(box, source.origin, source.direction);
      grad = grad_values[i];
    }
    const float weight = ray.hit ? grad * static_cast<float>(step_mm(ray, work.samples)) : 0.0f;
    float sum = 0.0f, slope[3] = {}, moment[3] = {};
    for (int first = 0; first < work.samples; first += kWarp) {
      const int k = first + lane;
      const bool active = ray.hit && k < work.samples;
      float coordinate[3] = {};
      ThreadSample<kChannels> sample;
      if (active) place_on_ray(ray, k, per_sample, coordinate);
      backward_step<kChannels>(field, active, coordinate, weight, gradients, shared, block_weights, sample);
      if (!active || gradients.origin == nullptr) continue;
      float s[3];
      slope_point<kChannels>(field, sample.cell, sample.features_grad, s);
      sum += sample.field;
      for (int a = 0; a < 3; ++a) {
        slope[a] += s[a];
        moment[a] += (static_cast<float>(k) + 0.5f) * per_sample * s[a];
      }
    }
    if (gradients.origin == nullptr) continue;
    double s[3], m[3];
    sum = warp_sum(sum);
    for (int a = 0; a < 3; ++a) s[a] = warp_sum(slope[a]), m[a] = warp_sum(moment[a]);
    if (lane == 0 && ray.hit) {
      double d_origin[3], d_direction[3];
      ray_gradient(box, ray, source.direction, work.samples, grad, sum, s, m, d_origin, d_direction);
      for (int a = 0; a < 3; ++a) {
        gradients.origin[3 * (work.first_ray + i) + a] += static_cast<float>(d_origin[a]);
        gradients.direction[3 * (work.first_ray + i) + a] += static_cast<float>(d_direction[a]);
      }
    }
  }
}

template <int kChannels>
__global__ void __launch_bounds__(kBlockThreads)
    query_backward_kernel(PointField field, TriplaneBox box, Work work, const float *grad_values,
                          PointGradients gradients) {
  extern __shared__ __align__(16) unsigned char memory[];
  BlockShared<kChannels> *shared = gradients.weights ? reinterpret_cast<BlockShared<kChannels> *>(memory) : nullptr;
  float *block_weights = gradients.weights + blockIdx.x * weight_floats(kChannels, field.hidden);
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kBlockThreads; base < work.count;
       base += static_cast<int64_t>(gridDim.x) * kBlockThreads) {
    const int64_t i = base + threadIdx.x;
    float coordinate[3] = {};
    const bool active = place_point(box, work, i, coordinate);
    ThreadSample<kChannels> sample;
    backward_step<kChannels>(field, active, coordinate, active ? grad_values[i] : 0.0f, gradients, shared,
                             block_weights, sample);
    if (!active || gradients.origin == nullptr) continue;
    float s[3];
    slope_point<kChannels>(field, sample.cell, sample.features_grad, s);
    for (int a = 0; a < 3; ++a) gradients.origin[3 * i + a] += static_cast<float>(s[a] * box.texels_per_mm);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace licag3d
