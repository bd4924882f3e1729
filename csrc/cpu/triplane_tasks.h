// SPDX-License-Identifier: Apache-2.0
// The pieces of work of the tri-plane operators that exist once per instruction set, and the plain data they share.
#pragma once

#include "cpu/isa.h"
#include "include/licag3d_triplane.h"

namespace licag3d {

constexpr int kTriplaneLanes = 16;       // rays (or points) side by side in a tile
constexpr int kTriplaneQueryDepth = 96;  // rows of 16 points in a tile of query_triplane

// One item of the batch, ready for the packet kernels: channel-last planes and padded weights. cp and hp are channels
// and hidden rounded up to 16; the padding is zero and adds nothing.
struct TriplaneItem {
  const licag3d_triplane *field;
  const float *texels;     // (3, R, R, cp)
  const float *weight_1;   // (hp, cp)
  const float *weight_1t;  // (cp, hp)
  const float *bias_1;     // (hp)
  const float *weight_2;   // (hp)
  float bias_2;
  int channels, cp, hidden, hp, resolution;
};

// What the backward pass of one tile leaves for the second phase, in which every thread owns a slice of the plane
// gradient: where each sample lies and the gradient of its features. See triplane.cpp.
struct TriplaneRecord {
  int32_t *texel;   // (3 planes, samples): index of the first of the four texels
  float *fraction;  // (3 axes, samples)
  float *features;  // (cp / 16, samples, 16)
  float *weights;   // gradients of weight_1t (cp, hp), bias_1 (hp), weight_2 (hp), bias_2 (1, padded to 16)
  int64_t samples;  // capacity: 16 x samples per ray
  bool want_planes, want_weights;
};

struct TriplaneRayTask {
  const licag3d_rays *rays;
  int64_t first_ray;    // of this item, in rays and in the ray gradients
  const int64_t *hits;  // rays that meet the box, in tile order
  int64_t hit_count;
  int32_t samples;
};

}  // namespace licag3d

// Channel-last float copy of texels [begin, end) of one plane.
LICAG3D_DECLARE_ISA(void triplane_repack(const licag3d_triplane &field, const void *plane, int cp, float *texels,
                                         int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(int64_t triplane_scratch_floats(const ::licag3d::TriplaneItem &item))
LICAG3D_DECLARE_ISA(void triplane_render_tile(const ::licag3d::TriplaneItem &item,
                                              const ::licag3d::TriplaneRayTask &task, int64_t tile, float *scratch,
                                              float *values))
LICAG3D_DECLARE_ISA(void triplane_render_tile_backward(
    const ::licag3d::TriplaneItem &item, const ::licag3d::TriplaneRayTask &task, int64_t tile, const float *grad_values,
    float *scratch, const ::licag3d::TriplaneRecord &record, float *grad_origin, float *grad_direction))
LICAG3D_DECLARE_ISA(void triplane_query_tile(const ::licag3d::TriplaneItem &item, const void *points, bool is_double,
                                             int64_t count, int64_t tile, float *scratch, float *values))
LICAG3D_DECLARE_ISA(void triplane_query_tile_backward(const ::licag3d::TriplaneItem &item, const void *points,
                                                      bool is_double, int64_t count, int64_t tile,
                                                      const float *grad_values, float *scratch,
                                                      const ::licag3d::TriplaneRecord &record, float *grad_points))
// Adds a tile's share to slice (16 channels) of the gradient of one plane, (R, R, 16).
LICAG3D_DECLARE_ISA(void triplane_scatter(const ::licag3d::TriplaneRecord &record, int resolution, int plane, int slice,
                                          float *gradient))
