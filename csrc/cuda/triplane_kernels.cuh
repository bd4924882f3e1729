// SPDX-License-Identifier: Apache-2.0
// Kernels of the tri-plane operators. A warp takes 32 rays (8 x 4 pixels where the image is known) and a piece of their
// samples; each lane walks its own ray over empty cells, and the samples of all lanes are gathered, decoded and scattered
// together. Sums of a ray stay with its lane. Included by triplane.cu alone.
#pragma once

#include <cuda_runtime.h>

#include "core/rays.h"
#include "core/triplane.h"
#include "core/triplane_block.h"
#include "core/triplane_cells.h"
#include "core/triplane_tensor.h"
#include "cuda/warp.cuh"
#include "include/licag3d_triplane.h"

namespace licag3d {
namespace cuda {
namespace {

constexpr int kWarps = kBlockThreads / kLanes32;
constexpr int kRaySums = 7;  // field, slope (3), moment (3)

// What a kernel integrates: rays, or points (then a "ray" is one point and samples is 1).
struct Work {
  licag3d_rays rays;
  const void *points;
  int64_t first_ray;  // of this item of the batch
  int64_t count;      // rays or points
  int32_t samples;
  int32_t points_are_double;
  int32_t cols;      // pixels of a row, 0: no image
  int32_t segments;  // pieces that the samples of a ray are cut into
};

__host__ __device__ inline int64_t tiles_of(const Work &work) {
  if (work.cols == 0) return (work.count + kLanes32 - 1) / kLanes32;
  return static_cast<int64_t>((work.cols + 7) / 8) * ((work.count / work.cols + 3) / 4);
}

// Ray of a lane, or -1.
__device__ inline int64_t ray_of_tile(const Work &work, int64_t tile, int lane) {
  if (work.cols == 0) {
    const int64_t i = tile * kLanes32 + lane;
    return i < work.count ? i : -1;
  }
  const int64_t across = (work.cols + 7) / 8, col = tile % across * 8 + lane % 8, row = tile / across * 4 + lane / 8;
  return col < work.cols && row < work.count / work.cols ? row * work.cols + col : -1;
}

// The part of a ray that a lane walks, texel units.
struct Walk {
  float start[3], delta[3];
  float per_sample, per_cell;
  float weight;  // backward: gradient of the integral times the step in mm
  int next, end;
};

__device__ inline Walk walk_ray(const TriplaneBox &box, const CellGrid &cells, const Work &work, int64_t i, int segment,
                                const float *grad_values) {
  Walk walk = {};
  if (i < 0) return walk;
  const RayMm source = load_ray(work.rays, work.first_ray + i);
  const ClippedRay ray = clip_ray(box, source.origin, source.direction);
  if (!ray.hit) return walk;
  for (int a = 0; a < 3; ++a) walk.start[a] = ray.start[a], walk.delta[a] = ray.delta[a];
  walk.per_sample = 1.0f / static_cast<float>(work.samples);
  walk.weight = grad_values != nullptr ? grad_values[i] * static_cast<float>(step_mm(ray, work.samples)) : 0.0f;
  walk.per_cell = cells.distance != nullptr ? samples_per_cell(cells, walk.delta, walk.per_sample) : 1.0f;
  const int length = (work.samples + work.segments - 1) / work.segments;
  walk.end = min((segment + 1) * length, work.samples);
  walk.next = next_sample(cells, walk.start, walk.delta, walk.per_sample, walk.per_cell, segment * length, walk.end);
  return walk;
}

// A point is a ray of one sample that does not move.
__device__ inline Walk walk_point(const TriplaneBox &box, const CellGrid &cells, const Work &work, int64_t i,
                                  const float *grad_values) {
  Walk walk = {};
  if (i < 0) return walk;
  bool inside = true;
  for (int a = 0; a < 3; ++a) {
    const double x = work.points_are_double ? static_cast<const double *>(work.points)[3 * i + a]
                                            : static_cast<double>(static_cast<const float *>(work.points)[3 * i + a]);
    inside = inside && x >= box.low[a] && x <= box.high[a];
    walk.start[a] = static_cast<float>(to_texel(box, a, x));
  }
  walk.weight = grad_values != nullptr && inside ? grad_values[i] : 0.0f;
  walk.end = inside && (cells.distance == nullptr || cell_distance(cells, walk.start) == 0) ? 1 : 0;
  return walk;
}

// Adds to the gradient of the planes in whatever order warps come, four channels at once where the device can.
struct AddInAnyOrder {
  float *planes;
  __device__ void operator()(int64_t at, const Float4 &value) const {
#if __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float4 *>(planes + at), make_float4(value.v[0], value.v[1], value.v[2], value.v[3]));
#else
    for (int i = 0; i < 4; ++i) atomicAdd(planes + at + i, value.v[i]);
#endif
  }
};

// The same in whole numbers, whose sum does not depend on the order. What is not finite is remembered.
struct AddWhole {
  unsigned long long *planes;
  const double *scale;
  int *broken;
  __device__ void operator()(int64_t at, const Float4 &value) const {
    for (int i = 0; i < 4; ++i) {
      if (!isfinite(value.v[i])) *broken = 1;
      atomicAdd(planes + at + i, static_cast<unsigned long long>(__double2ll_rn(value.v[i] * *scale)));
    }
  }
};

struct Field {
  const void *texels;    // (3, R, R, channels), float or half as the decoder reads them
  const float *weights;  // padded, as weight_floats counts them
  int resolution, hidden;
};

struct Targets {
  float *planes;               // NULL: no gradient of the planes
  unsigned long long *whole;   // instead of planes, where sums must repeat
  const double *scale;
  int *broken;
  float *weights;              // one set for each block (float32) or warp (bfloat16), or NULL
  float *sums;                 // (kRaySums, segments, count) or NULL; the forward pass has the first alone
};

// --- the two decoders ------------------------------------------------------------------------------------------------

// float32, any number of hidden units whose weights fit into shared memory. All warps of a block keep step.
template <int kChannels>
struct PlainDecoder {
  using Texel = float;
  static constexpr int kPadded = kChannels, kMinBlocks = 1;
  static constexpr bool kKeepStep = true;

  __host__ __device__ static size_t shared_bytes(int hidden, bool backward) {
    const size_t most = backward ? sizeof(BlockShared<kChannels>) : offsetof(BlockShared<kChannels>, unit);
    return most + weight_floats(kChannels, hidden) * sizeof(float);
  }
  __host__ static int64_t weight_sets(int64_t blocks) { return blocks; }

  BlockShared<kChannels> *shared;
  PointField field;
  float *block_weights;
  ThreadSample<kChannels> sample;

  __device__ void begin(unsigned char *memory, const Field &given, const Targets &targets, bool backward) {
    shared = reinterpret_cast<BlockShared<kChannels> *>(memory);
    float *weights = reinterpret_cast<float *>(
        memory + (backward ? sizeof(BlockShared<kChannels>) : offsetof(BlockShared<kChannels>, unit)));
    const int64_t count = weight_floats(kChannels, given.hidden);
    for (int64_t i = threadIdx.x; i < count; i += kBlockThreads) weights[i] = given.weights[i];
    const float *bias_1 = weights + given.hidden * kChannels;
    field = {weights, bias_1, bias_1 + given.hidden, bias_1 + 2 * given.hidden, given.hidden};
    block_weights = targets.weights != nullptr ? targets.weights + blockIdx.x * count : nullptr;
    __syncthreads();
  }
  __device__ WarpCells &cells() { return shared->cells[threadIdx.x / kLanes32]; }
  __device__ const float *gradient() { return shared->features[threadIdx.x / kLanes32 * kLanes32]; }
  static constexpr int kGradientRow = BlockShared<kChannels>::kRow;

  __device__ void gather(DeviceWarp &warp, const Field &given, uint32_t active) {
    float(*rows)[kGradientRow] = &shared->features[threadIdx.x / kLanes32 * kLanes32];
    warp_gather<kChannels>(warp, static_cast<const float *>(given.texels), given.resolution, cells(), active,
                           [&](int lane, int channel, const float *values) {
                             *reinterpret_cast<Float4 *>(&rows[lane][channel]) =
                                 Float4{{values[0], values[1], values[2], values[3]}};
                           });
    warp.sync();
  }
  __device__ float decode(DeviceWarp &, bool active) {
    float features[kChannels];
    block_features(*shared, features, threadIdx.x);
    return active ? softplus_one(decode_point<kChannels>(field, features)) : 0.0f;
  }
  template <bool kWeights>
  __device__ float decode_backward(DeviceWarp &, bool active, float weight) {
    block_decode<kChannels>(field, active, weight, sample, *shared, threadIdx.x);
    for (int first = 0; first < field.hidden; first += kStage) {
      block_stage<kChannels, kWeights>(field, active, first, sample, *shared, threadIdx.x);
      if (!kWeights) continue;
      __syncthreads();
      block_reduce<kChannels>(*shared, field.hidden, first, block_weights, threadIdx.x);
      __syncthreads();
    }
    block_turn<kChannels>(sample, *shared, threadIdx.x);
    __syncwarp();
    return sample.field;
  }
  template <bool kWeights>
  __device__ void finish(DeviceWarp &, const Targets &) {}
};

// bfloat16 on the matrix units: 32 channels, 64 hidden units. Warps go their own ways.
struct TensorDecoder {
  using Texel = Half;
  static constexpr int kPadded = kTensorChannels, kMinBlocks = 2;
  static constexpr bool kKeepStep = false;
  struct Shared {
    TensorWeights weights;
    TensorPacket packet[kWarps];
  };
  __host__ __device__ static size_t shared_bytes(int, bool) { return sizeof(Shared); }
  __host__ static int64_t weight_sets(int64_t blocks) { return blocks * kWarps; }

  Shared *shared;
  TensorSums<DeviceWarp> sums;

  __device__ void begin(unsigned char *memory, const Field &given, const Targets &, bool) {
    shared = reinterpret_cast<Shared *>(memory);
    tensor_weights(given.weights, shared->weights, threadIdx.x, kBlockThreads);
    DeviceWarp warp = {static_cast<int>(threadIdx.x % kLanes32)};
    sums.clear(warp);
    __syncthreads();
  }
  __device__ TensorPacket &packet() { return shared->packet[threadIdx.x / kLanes32]; }
  __device__ WarpCells &cells() { return packet().cells; }
  __device__ const float *gradient() { return packet().gradient[0]; }
  static constexpr int kGradientRow = kTensorGradient;

  __device__ void gather(DeviceWarp &warp, const Field &given, uint32_t active) {
    tensor_gather(warp, static_cast<const Half *>(given.texels), given.resolution, active, packet());
  }
  __device__ float decode(DeviceWarp &warp, bool active) {
    tensor_decode(warp, shared->weights, packet());
    return active ? packet().field[warp.lane] : 0.0f;
  }
  template <bool kWeights>
  __device__ float decode_backward(DeviceWarp &warp, bool active, float weight) {
    packet().weight[warp.lane] = active ? weight : 0.0f;
    warp.sync();
    tensor_decode_backward<kWeights>(warp, shared->weights, packet(), sums);
    return active ? packet().field[warp.lane] : 0.0f;
  }
  template <bool kWeights>
  __device__ void finish(DeviceWarp &warp, const Targets &targets) {
    const int64_t place = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes32;
    if (kWeights) tensor_store(warp, sums, targets.weights + place * weight_floats(kTensorChannels, kTensorHidden));
  }
};

// --- the walk --------------------------------------------------------------------------------------------------------

template <class Decoder, bool kPoints, bool kBackward, bool kWeights>
__global__ void __launch_bounds__(kBlockThreads, Decoder::kMinBlocks)
    triplane_kernel(Field field, TriplaneBox box, CellGrid cells, Work work, const float *grad_values, float *values,
                    Targets targets) {
  extern __shared__ __align__(16) unsigned char memory[];
  DeviceWarp warp = {static_cast<int>(threadIdx.x % kLanes32)};
  Decoder decoder;
  decoder.begin(memory, field, targets, kBackward);
  const int64_t units = tiles_of(work) * work.segments;
  constexpr bool kBarriers = Decoder::kKeepStep && kBackward && kWeights;
  // The trip counts are the same for all warps of a block: the barriers inside need every thread.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kWarps; base < units;
       base += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t unit = base + threadIdx.x / kLanes32;
    const int segment = static_cast<int>(unit % work.segments);
    const int64_t i = unit < units ? ray_of_tile(work, unit / work.segments, warp.lane) : -1;
    Walk walk = kPoints ? walk_point(box, cells, work, i, grad_values) : walk_ray(box, cells, work, i, segment, grad_values);
    float sum = 0.0f, slope[3] = {}, moment[3] = {};
    for (;;) {
      const bool active = walk.next < walk.end;
      const uint32_t mask = __ballot_sync(kAllLanes, active);
      if (kBarriers ? !__syncthreads_or(active) : mask == 0) break;
      const float fraction = kPoints ? 0.0f : (static_cast<float>(walk.next) + 0.5f) * walk.per_sample;
      float coordinate[3];
      for (int a = 0; a < 3; ++a) coordinate[a] = walk.start[a] + fraction * walk.delta[a];
      place_lane(decoder.cells(), warp.lane, field.resolution, active, coordinate);
      warp.sync();
      decoder.gather(warp, field, mask);
      if (!kBackward) {
        sum += decoder.decode(warp, active);
      } else {
        sum += decoder.template decode_backward<kWeights>(warp, active, walk.weight);
        if (targets.planes != nullptr)
          warp_scatter<Decoder::kPadded>(warp, field.resolution, decoder.cells(), mask, decoder.gradient(),
                                         Decoder::kGradientRow, AddInAnyOrder{targets.planes});
        if (targets.whole != nullptr)
          warp_scatter<Decoder::kPadded>(warp, field.resolution, decoder.cells(), mask, decoder.gradient(),
                                         Decoder::kGradientRow, AddWhole{targets.whole, targets.scale, targets.broken});
        if (targets.sums != nullptr) {
          // Slopes take the places of `inside`, which nobody needs any more.
          warp_slopes<Decoder::kPadded>(warp, static_cast<const typename Decoder::Texel *>(field.texels), field.resolution,
                                        decoder.cells(), mask, decoder.gradient(), Decoder::kGradientRow,
                                        [&](int lane, const float *found) {
                                          for (int a = 0; a < 3; ++a) decoder.cells().inside[a][lane] = found[a];
                                        });
          warp.sync();
          for (int a = 0; a < 3 && active; ++a) {
            slope[a] += decoder.cells().inside[a][warp.lane];
            moment[a] += fraction * decoder.cells().inside[a][warp.lane];
          }
        }
      }
      warp.sync();
      if (active)
        walk.next = kPoints ? walk.end
                            : next_sample(cells, walk.start, walk.delta, walk.per_sample, walk.per_cell, walk.next + 1,
                                          walk.end);
    }
    if (i < 0) continue;
    if (!kBackward) {
      if (kPoints)
        values[i] = sum;
      else
        targets.sums[segment * work.count + i] = sum;
    } else if (targets.sums != nullptr) {
      const int64_t step = work.segments * work.count;
      float *out = targets.sums + segment * work.count + i;
      out[0] = sum;
      for (int a = 0; a < 3; ++a) out[(1 + a) * step] = slope[a], out[(4 + a) * step] = moment[a];
    }
  }
  if (kBackward) decoder.template finish<kWeights>(warp, targets);
}

// --- sums of the segments of a ray -----------------------------------------------------------------------------------

__global__ void finish_values_kernel(TriplaneBox box, Work work, const float *sums, float *values) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < work.count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const RayMm source = load_ray(work.rays, work.first_ray + i);
    const ClippedRay ray = clip_ray(box, source.origin, source.direction);
    float sum = 0.0f;
    for (int s = 0; s < work.segments; ++s) sum += sums[s * work.count + i];
    values[i] = ray.hit ? sum * static_cast<float>(step_mm(ray, work.samples)) : is_finite(source) ? 0.0f : NAN;
  }
}

// Added to the gradients of the rays, or of the points.
__global__ void finish_rays_kernel(TriplaneBox box, Work work, const float *sums, const float *grad_values, float *origin,
                                   float *direction) {
  const int64_t step = work.segments * work.count;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < work.count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    double total[kRaySums] = {};
    for (int k = 0; k < kRaySums; ++k)
      for (int s = 0; s < work.segments; ++s) total[k] += sums[k * step + s * work.count + i];
    if (work.points != nullptr) {
      for (int a = 0; a < 3; ++a) origin[3 * i + a] += static_cast<float>(total[1 + a] * box.texels_per_mm);
      continue;
    }
    const RayMm source = load_ray(work.rays, work.first_ray + i);
    const ClippedRay ray = clip_ray(box, source.origin, source.direction);
    if (!ray.hit) continue;
    double d_origin[3], d_direction[3];
    ray_gradient(box, ray, source.direction, work.samples, grad_values[i], total[0], total + 1, total + 4, d_origin,
                 d_direction);
    for (int a = 0; a < 3; ++a) {
      origin[3 * (work.first_ray + i) + a] += static_cast<float>(d_origin[a]);
      direction[3 * (work.first_ray + i) + a] += static_cast<float>(d_direction[a]);
    }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace licag3d
