// SPDX-License-Identifier: Apache-2.0
// One sample of a tri-plane field, for one thread: gather, decode, and the gradients of both. Used by the CUDA kernels;
// the CPU does the same in packets (cpu/triplane_packet.h). kChannels is padded to a multiple of 16 with zeros.
#pragma once

#include "core/platform.h"
#include "core/softplus.h"

// Arrays of channels stay in registers only where their loops are unrolled.
#if defined(__CUDA_ARCH__)
#define LICAG3D_UNROLL _Pragma("unroll")
#else
#define LICAG3D_UNROLL
#endif

LICAG3D_CORE_BEGIN

struct alignas(16) Float4 {
  float v[4];
};

LICAG3D_HD Float4 load4(const float *p) { return *reinterpret_cast<const Float4 *>(p); }

// hidden is padded to a multiple of 16 with zeros.
struct PointField {
  const float *texels;    // (3, R, R, channels)
  const float *weight_1;  // (hidden, channels)
  const float *bias_1, *weight_2, *bias_2;
  int resolution, hidden;
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
LICAG3D_HD const float *first_texel(const float *texels, int resolution, int plane, const PointCell &cell) {
  return texels + (static_cast<int64_t>(plane) * resolution * resolution + cell.texel[plane]) * kChannels;
}

// Mean over the planes of the bilinear samples.
template <int kChannels>
LICAG3D_HD void gather_point(const PointField &field, const PointCell &cell, float *features) {
  const int64_t right = step_right<kChannels>(field.resolution), down = step_down<kChannels>(field.resolution);
  LICAG3D_UNROLL
  for (int c = 0; c < kChannels; ++c) features[c] = 0.0f;
  LICAG3D_UNROLL
  for (int p = 0; p < 3; ++p) {
    const float *t = first_texel<kChannels>(field.texels, field.resolution, p, cell);
    const float x = cell.fraction[plane_column(p)], y = cell.fraction[plane_row(p)];
    const float w11 = x * y * (1.0f / 3.0f), w01 = x * (1.0f / 3.0f) - w11, w10 = y * (1.0f / 3.0f) - w11,
                w00 = (1.0f / 3.0f) - x * (1.0f / 3.0f) - w10;
    LICAG3D_UNROLL
    for (int c = 0; c < kChannels; c += 4) {
      const Float4 t00 = load4(t + c), t01 = load4(t + c + right), t10 = load4(t + c + down),
                   t11 = load4(t + c + down + right);
      LICAG3D_UNROLL
      for (int i = 0; i < 4; ++i)
        features[c + i] += w00 * t00.v[i] + w01 * t01.v[i] + (w10 * t10.v[i] + w11 * t11.v[i]);
    }
  }
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

// Adds the gradient of the features to the planes' gradient (3, R, R, channels) with add(float *, Float4).
template <int kChannels, class Add>
LICAG3D_HD void scatter_point(float *gradient, int resolution, const PointCell &cell, const float *features_grad,
                              Add &&add) {
  const int64_t right = step_right<kChannels>(resolution), down = step_down<kChannels>(resolution);
  LICAG3D_UNROLL
  for (int p = 0; p < 3; ++p) {
    float *t = const_cast<float *>(first_texel<kChannels>(gradient, resolution, p, cell));
    const float x = cell.fraction[plane_column(p)], y = cell.fraction[plane_row(p)];
    const float w11 = x * y * (1.0f / 3.0f), w01 = x * (1.0f / 3.0f) - w11, w10 = y * (1.0f / 3.0f) - w11,
                w00 = (1.0f / 3.0f) - x * (1.0f / 3.0f) - w10;
    LICAG3D_UNROLL
    for (int c = 0; c < kChannels; c += 4) {
      Float4 g00, g01, g10, g11;
      LICAG3D_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float g = features_grad[c + i];
        g00.v[i] = w00 * g, g01.v[i] = w01 * g, g10.v[i] = w10 * g, g11.v[i] = w11 * g;
      }
      add(t + c, g00);
      add(t + c + right, g01);
      add(t + c + down, g10);
      add(t + c + down + right, g11);
    }
  }
}

// Gradient of the coordinates, from that of the features.
template <int kChannels>
LICAG3D_HD void slope_point(const PointField &field, const PointCell &cell, const float *features_grad, float *slope) {
  const int64_t right = step_right<kChannels>(field.resolution), down = step_down<kChannels>(field.resolution);
  for (int a = 0; a < 3; ++a) slope[a] = 0.0f;
  LICAG3D_UNROLL
  for (int p = 0; p < 3; ++p) {
    const float *t = first_texel<kChannels>(field.texels, field.resolution, p, cell);
    float s00 = 0.0f, s01 = 0.0f, s10 = 0.0f, s11 = 0.0f;
    LICAG3D_UNROLL
    for (int c = 0; c < kChannels; c += 4) {
      const Float4 t00 = load4(t + c), t01 = load4(t + c + right), t10 = load4(t + c + down),
                   t11 = load4(t + c + down + right);
      LICAG3D_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float g = features_grad[c + i];
        s00 += g * t00.v[i], s01 += g * t01.v[i], s10 += g * t10.v[i], s11 += g * t11.v[i];
      }
    }
    const float x = cell.fraction[plane_column(p)], y = cell.fraction[plane_row(p)];
    slope[plane_column(p)] += (1.0f / 3.0f) * ((s01 - s00) * (1.0f - y) + (s11 - s10) * y);
    slope[plane_row(p)] += (1.0f / 3.0f) * ((s10 - s00) * (1.0f - x) + (s11 - s01) * x);
  }
  for (int a = 0; a < 3; ++a) slope[a] *= cell.inside[a];
}

LICAG3D_CORE_END
