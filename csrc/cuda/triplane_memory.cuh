// SPDX-License-Identifier: Apache-2.0
// The tri-plane field in the form the kernels read, and gradients back in the form they are handed out. Included by
// triplane.cu alone.
#pragma once

#include <cuda_fp16.h>

#include "core/triplane_block.h"
#include "core/view_walk.h"
#include "cuda/triplane_kernels.cuh"

namespace licag3d {
namespace cuda {
namespace {

constexpr int kTileTexels = 32;
constexpr int kCellReach = 8;  // distances of cells are counted up to here

__device__ inline void store_texel(float *to, float value) { *to = value; }
// Held within what a half can say; NaN stays.
__device__ inline void store_texel(Half *to, float value) {
  to->bits = __half_as_ushort(__float2half_rn(value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value));
}

// (3, C, R, R) to (3, R, R, padded): 32 texels at a time through shared memory, read along texels and written along
// channels.
template <class Texel>
__global__ void repack_kernel(const void *planes, int is_half, int channels, int padded, int64_t texels, Texel *out) {
  __shared__ float tile[64][kTileTexels + 1];
  const int64_t across = (texels + kTileTexels - 1) / kTileTexels;
  for (int64_t block = blockIdx.x; block < 3 * across; block += gridDim.x) {
    const int64_t plane = block / across, first = block % across * kTileTexels;
    const int lane = threadIdx.x % kTileTexels;
    for (int c = threadIdx.x / kTileTexels; c < padded; c += blockDim.x / kTileTexels) {
      const int64_t from = (plane * channels + c) * texels + first + lane;
      tile[c][lane] = c >= channels || first + lane >= texels ? 0.0f
                      : is_half                               ? __half2float(static_cast<const __half *>(planes)[from])
                                                              : static_cast<const float *>(planes)[from];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTileTexels * padded; i += blockDim.x) {
      const int texel = i / padded, c = i % padded;
      if (first + texel < texels) store_texel(out + (plane * texels + first + texel) * padded + c, tile[c][texel]);
    }
    __syncthreads();
  }
}

// The way back for the gradient; from whole numbers where `whole` is given.
__global__ void unpack_kernel(const float *gradient, const unsigned long long *whole, const double *scale,
                              const int *broken, int channels, int padded, int64_t texels, float *out) {
  __shared__ float tile[64][kTileTexels + 1];
  const int64_t across = (texels + kTileTexels - 1) / kTileTexels;
  const double per_unit = whole != nullptr ? 1.0 / *scale : 1.0;
  const bool lost = whole != nullptr && (*broken != 0 || !(*scale > 0.0));
  for (int64_t block = blockIdx.x; block < 3 * across; block += gridDim.x) {
    const int64_t plane = block / across, first = block % across * kTileTexels;
    for (int i = threadIdx.x; i < kTileTexels * padded; i += blockDim.x) {
      const int texel = i / padded, c = i % padded;
      const int64_t from = (plane * texels + first + texel) * padded + c;
      if (first + texel < texels)
        tile[c][texel] = whole == nullptr ? gradient[from]
                         : lost           ? NAN
                                          : static_cast<float>(static_cast<long long>(whole[from]) * per_unit);
    }
    __syncthreads();
    const int lane = threadIdx.x % kTileTexels;
    for (int c = threadIdx.x / kTileTexels; c < channels; c += blockDim.x / kTileTexels)
      if (first + lane < texels) out[(plane * channels + c) * texels + first + lane] = tile[c][lane];
    __syncthreads();
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

// Sum over the sets in order, in double: the same bits every time.
__global__ void sum_weights_kernel(const float *partial, int64_t sets, int channels, int padded, int real_hidden,
                                   int hidden, licag3d_triplane_gradients out) {
  const int64_t size = weight_floats(padded, hidden);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    double sum = 0.0;
    for (int64_t b = 0; b < sets; ++b) sum += partial[b * size + i];
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

// --- occupancy -------------------------------------------------------------------------------------------------------

__global__ void start_cells_kernel(const uint8_t *occupancy, int64_t count, uint8_t *out) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    out[i] = occupancy[i] != 0 ? 0 : kCellReach;
}

__global__ void reach_cells_kernel(int cells, int axis, const uint8_t *in, uint8_t *out) {
  const int64_t stride = axis == 0 ? 1 : axis == 1 ? cells : static_cast<int64_t>(cells) * cells;
  const int64_t count = static_cast<int64_t>(cells) * cells * cells;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    out[i] = walk_reach(in + i, stride, static_cast<int>(i / stride % cells), cells);
}

// --- the unit of sums that repeat --------------------------------------------------------------------------------------

// Largest magnitude; the order of the bits of positive floats is that of their values, and NaN lies above all.
__global__ void largest_kernel(const float *values, int64_t count, unsigned *out) {
  unsigned most = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    most = max(most, __float_as_uint(values[i]) & 0x7fffffffu);
  atomicMax(out, most);
}

// No sum of `terms` gradients, each at most `largest` times the slope of the decoder times `longest_mm`, leaves 62 bits.
// A power of two, so that turning back is exact. Zero where that bound is not finite.
__global__ void choose_scale_kernel(const float *weights, int padded, int hidden, const unsigned *largest, double longest_mm,
                                    double terms, double *scale) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  const float *weight_2 = weights + static_cast<int64_t>(hidden) * (padded + 1);
  double steepest = 0.0;
  for (int c = 0; c < padded; ++c) {
    double sum = 0.0;
    for (int j = 0; j < hidden; ++j) sum += fabs(static_cast<double>(weight_2[j]) * weights[j * padded + c]);
    steepest = sum > steepest || !(sum == sum) ? sum : steepest;
  }
  const double bound = steepest * __uint_as_float(*largest) * longest_mm * terms;
  if (!(bound < 1e300))
    *scale = 0.0;
  else
    *scale = exp2(floor(62.0 - log2(bound > 1e-280 ? 1.1 * bound : 1e-280)));
}

}  // namespace
}  // namespace cuda
}  // namespace licag3d
