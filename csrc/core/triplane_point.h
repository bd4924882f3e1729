// SPDX-License-Identifier: Apache-2.0
// One sample of a tri-plane field, for one thread: where it lies, the decoder and its gradients. Used by the CUDA kernels
// (what a warp does together is in core/triplane_warp.h); the CPU does the same in packets (cpu/triplane_packet.h).
// kChannels is padded to a multiple of 16 with zeros.
#pragma once

#include "core/platform.h"
#include "core/softplus.h"

// Arrays of channels stay in registers only where their loops are unrolled.
#if defined(__CUDA_ARCH__)
#define LICAG3D_UNROLL _Pragma("unroll")
#define LICAG3D_UNROLL_4 _Pragma("unroll 4")
#else
#define LICAG3D_UNROLL
#define LICAG3D_UNROLL_4
#endif

LICAG3D_CORE_BEGIN

struct alignas(16) Float4 {
  float v[4];
};

LICAG3D_HD Float4 load4(const float *p) { return *reinterpret_cast<const Float4 *>(p); }

// hidden is padded to a multiple of 16 with zeros.
struct PointField {
  const float *weight_1;  // (hidden, channels)
  const float *bias_1, *weight_2, *bias_2;
  int hidden;
};

// The four texels around a point in each plane XY, XZ, YZ.
struct PointCell {
  int64_t texel[3];
  float fraction[3];
  float inside[3];  // 0 where the border clamps: no slope there
};

LICAG3D_HD PointCell locate_point(int resolution, const float *coordinate) {
  PointCell out;
  int cell[3];
  const float last = static_cast<float>(resolution - 1);
  for (int a = 0; a < 3; ++a) {
    const float u = coordinate[a], above = u > 0.0f ? u : 0.0f;  // NaN becomes 0: an index is always valid
    const float clamped = above < last ? above : last;
    const int whole = static_cast<int>(clamped), last_cell = resolution > 1 ? resolution - 2 : 0;
    cell[a] = whole < last_cell ? whole : last_cell;
    out.fraction[a] = clamped - static_cast<float>(cell[a]);
    out.inside[a] = u > 0.0f && u < last ? 1.0f : 0.0f;
  }
  out.texel[0] = static_cast<int64_t>(cell[1]) * resolution + cell[0];
  out.texel[1] = static_cast<int64_t>(cell[2]) * resolution + cell[0];
  out.texel[2] = static_cast<int64_t>(cell[2]) * resolution + cell[1];
  return out;
}

LICAG3D_HD int plane_column(int plane) { return plane == 2 ? 1 : 0; }
LICAG3D_HD int plane_row(int plane) { return plane == 0 ? 1 : 2; }

// Offsets in floats of the texels to the right and below; none in planes of a single texel.
template <int kChannels>
LICAG3D_HD int64_t step_right(int resolution) {
  return resolution > 1 ? kChannels : 0;
}
template <int kChannels>
LICAG3D_HD int64_t step_down(int resolution) {
  return resolution > 1 ? static_cast<int64_t>(kChannels) * resolution : 0;
}

template <int kChannels>
LICAG3D_HD float preactivation(const PointField &field, int j, const float *features) {
  float sum = field.bias_1[j];
  LICAG3D_UNROLL
  for (int c = 0; c < kChannels; c += 4) {
    const Float4 w = load4(field.weight_1 + static_cast<int64_t>(j) * kChannels + c);
    LICAG3D_UNROLL
    for (int i = 0; i < 4; ++i) sum += w.v[i] * features[c + i];
  }
  return sum;
}

// The argument of the last softplus.
template <int kChannels>
LICAG3D_HD float decode_point(const PointField &field, const float *features) {
  float sum = field.bias_2[0];
  for (int j = 0; j < field.hidden; ++j)
    sum += field.weight_2[j] * softplus_one(preactivation<kChannels>(field, j, features));
  return sum;
}

// Adds unit j's share to the gradient of the features; dz is the gradient of decode_point. Returns the gradient of the
// preactivation and sets weight_2_grad.
template <int kChannels>
LICAG3D_HD float decode_point_backward(const PointField &field, int j, const float *features, float dz,
                                       float *features_grad, float &weight_2_grad) {
  float slope;
  const float h = softplus_slope_one(preactivation<kChannels>(field, j, features), slope);
  const float dh = dz * field.weight_2[j] * slope;
  weight_2_grad = dz * h;
  LICAG3D_UNROLL
  for (int c = 0; c < kChannels; c += 4) {
    const Float4 w = load4(field.weight_1 + static_cast<int64_t>(j) * kChannels + c);
    LICAG3D_UNROLL
    for (int i = 0; i < 4; ++i) features_grad[c + i] += dh * w.v[i];
  }
  return dh;
}

LICAG3D_CORE_END
