// SPDX-License-Identifier: Apache-2.0
// C ABI, section "tri-planes": line integrals and values of a decoded tri-plane field, and all their gradients.
#ifndef LICAG3D_TRIPLANE_H
#define LICAG3D_TRIPLANE_H

#include "licag3d.h"

#ifdef __cplusplus
extern "C" {
#endif

// The field: planes (batch, 3, channels, resolution, resolution) contiguous, order XY [y, x], XZ [z, x], YZ [z, y],
// float32, or float16 where planes_are_half is set; texel centres at (i + 0.5) / resolution of the box edge, clamped at
// the border. f = mean of the three bilinear samples, field = softplus(weight_2 softplus(weight_1 f + bias_1) +
// bias_2); zero outside the cube of edge box_size_mm about box_center_mm.
typedef struct licag3d_triplane {
  const void *planes;
  const float *weight_1;  // (hidden, channels)
  const float *bias_1;    // (hidden)
  const float *weight_2;  // (hidden)
  const float *bias_2;    // (1)
  int64_t batch;
  int32_t channels;
  int32_t resolution;
  int32_t hidden;
  int32_t planes_are_half;
  double box_center_mm[3];
  double box_size_mm;
} licag3d_triplane;

// Where gradients go, each of the shape of its input and float32, overwritten. planes, or all four weights, or both
// ray pointers may be NULL: that part is not computed. For points, origin is the gradient of the points and direction
// NULL.
typedef struct licag3d_triplane_gradients {
  float *planes;
  float *weight_1;
  float *bias_1;
  float *weight_2;
  float *bias_2;
  float *origin;
  float *direction;
} licag3d_triplane_gradients;

// How to compute, beyond the field; a NULL pointer, or all zero, means none of it.
typedef struct licag3d_triplane_options {
  // Where the field is not zero: (cells, cells, cells) bytes, order [z, y, x], equal cells that fill the box; with
  // occupancy_per_item one such grid for each item of the batch. In cells of 0 the field counts as zero.
  const uint8_t *occupancy;
  int32_t cells;
  int32_t occupancy_per_item;
  int32_t precision;  // 0 float32, 1 bfloat16 for the products of the decoder
  // CPU: 0, or float32 planes with channels side by side: strides in floats of items, planes and texels, a row of texels
  // follows the one before; channels is a multiple of 16. The gradient of the planes is then laid out alike.
  int64_t batch_stride;
  int64_t plane_stride;
  int64_t texel_stride;
  int32_t deterministic;  // CUDA: sum the gradient of the planes so that it repeats bit for bit; the CPU always does
} licag3d_triplane_options;

// values (batch, rays per item): integral over the part of the ray, from origin to origin + direction, that lies in the
// box, by the midpoint rule with that many samples. With rays_per_item set, rays->count counts the rays of all items
// and each item has its own; otherwise all items share the rays and ray gradients are summed over the batch.
LICAG3D_API int32_t licag3d_render_triplane(const licag3d_run *run, const licag3d_triplane *field,
                                            const licag3d_rays *rays, int32_t rays_per_item, int32_t samples,
                                            float *values);
LICAG3D_API int32_t licag3d_render_triplane_with(const licag3d_run *run, const licag3d_triplane *field, const licag3d_triplane_options *options, const licag3d_rays *rays, int32_t rays_per_item, int32_t samples, float *values);
LICAG3D_API int32_t licag3d_render_triplane_backward(const licag3d_run *run, const licag3d_triplane *field,
                                                     const licag3d_rays *rays, int32_t rays_per_item, int32_t samples,
                                                     const float *grad_values,
                                                     const licag3d_triplane_gradients *gradients);
LICAG3D_API int32_t licag3d_render_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field, const licag3d_triplane_options *options, const licag3d_rays *rays, int32_t rays_per_item, int32_t samples, const float *grad_values, const licag3d_triplane_gradients *gradients);
// values (batch, count) at points (count, 3), float32, or float64 where points_are_double is set.
LICAG3D_API int32_t licag3d_query_triplane(const licag3d_run *run, const licag3d_triplane *field, const void *points,
                                           int32_t points_are_double, int64_t count, float *values);
LICAG3D_API int32_t licag3d_query_triplane_with(const licag3d_run *run, const licag3d_triplane *field, const licag3d_triplane_options *options, const void *points, int32_t points_are_double, int64_t count, float *values);
LICAG3D_API int32_t licag3d_query_triplane_backward(const licag3d_run *run, const licag3d_triplane *field,
                                                    const void *points, int32_t points_are_double, int64_t count,
                                                    const float *grad_values,
                                                    const licag3d_triplane_gradients *gradients);
LICAG3D_API int32_t licag3d_query_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field, const licag3d_triplane_options *options, const void *points, int32_t points_are_double, int64_t count, const float *grad_values, const licag3d_triplane_gradients *gradients);

// Occupancy lies in device memory, as all else. At most 64 channels, padded to 16, 32 or 64, and
// hidden units (padded to 16) times (channels + 2) at most 10000: the decoder lies in shared memory.
LICAG3D_API int32_t licag3d_cuda_render_triplane_with(const licag3d_run *run, const licag3d_triplane *field,
                                                      const licag3d_triplane_options *options, const licag3d_rays *rays,
                                                      int32_t rays_per_item, int32_t samples, float *values);
LICAG3D_API int32_t licag3d_cuda_render_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field,
                                                               const licag3d_triplane_options *options,
                                                               const licag3d_rays *rays, int32_t rays_per_item,
                                                               int32_t samples, const float *grad_values,
                                                               const licag3d_triplane_gradients *gradients);
LICAG3D_API int32_t licag3d_cuda_query_triplane_with(const licag3d_run *run, const licag3d_triplane *field,
                                                     const licag3d_triplane_options *options, const void *points,
                                                     int32_t points_are_double, int64_t count, float *values);
LICAG3D_API int32_t licag3d_cuda_query_triplane_backward_with(const licag3d_run *run, const licag3d_triplane *field,
                                                              const licag3d_triplane_options *options, const void *points,
                                                              int32_t points_are_double, int64_t count,
                                                              const float *grad_values,
                                                              const licag3d_triplane_gradients *gradients);

#ifdef __cplusplus
}
#endif

#endif  // LICAG3D_TRIPLANE_H
