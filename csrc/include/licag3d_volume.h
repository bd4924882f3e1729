// SPDX-License-Identifier: Apache-2.0
// C ABI, section "dense volumes": line integrals of a trilinear voxel field, their transpose and their ray gradients.
#ifndef LICAG3D_VOLUME_H
#define LICAG3D_VOLUME_H

#include "licag3d.h"

#ifdef __cplusplus
extern "C" {
#endif

// A grid of voxels; index order and every triple is x, y, z. A value sits at origin_mm + index * voxel_size_mm.
// stride_* are in elements. step_mm > 0 marches by that step; 0 samples on the planes of the ray's main axis.
// flags: a sum of licag3d_grid_flags.
enum licag3d_grid_flags {
  LICAG3D_KEEP_EMPTY = 1,  // do not look for empty bricks of the volume (results are the same bit for bit)
  LICAG3D_HALF = 2,        // the volume is IEEE binary16; only for the functions that say so
  LICAG3D_ATOMIC = 4,      // CUDA, backproject_views: spread ray by ray with atomics, in varying order, instead of gathering
};

typedef struct licag3d_grid {
  int64_t batch;
  int64_t stride_batch;
  int64_t stride[3];
  int32_t size[3];
  int32_t flags;
  double voxel_size_mm[3];
  double origin_mm[3];
  double step_mm;
} licag3d_grid;

// projections (batch, count) = line integrals of volume along the rays.
LICAG3D_API int32_t licag3d_project_volume(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                                           const float *volume, float *projections);
// volume += transpose of the above applied to projections.
LICAG3D_API int32_t licag3d_backproject(const licag3d_run *run, const licag3d_grid *grid, const licag3d_rays *rays,
                                        const float *projections, float *volume);
// Gradient of sum(weights * projections) with respect to each ray's origin and direction: (count, 3) each, float32,
// summed over the batch.
LICAG3D_API int32_t licag3d_project_volume_grad_rays(const licag3d_run *run, const licag3d_grid *grid,
                                                     const licag3d_rays *rays, const float *volume,
                                                     const float *weights, float *grad_origin, float *grad_direction);

// Views of a flat detector, world mm: 12 float64 per view, namely the source, the way from it to pixel (0, 0), and the
// steps of that way per column and per row. Rays are in the order view, row, column.
typedef struct licag3d_views {
  const double *frames;
  int64_t count;
  int32_t rows;
  int32_t cols;
} licag3d_views;

// The same three for whole views, on the planes rule alone (step_mm == 0). The volume of the first and the last may be
// binary16. On CUDA frames lie in device memory too. grad_frames (count, 12) is the gradient of sum(weights * projections) by the frames.
LICAG3D_API int32_t licag3d_project_views(const licag3d_run *run, const licag3d_grid *grid, const licag3d_views *views,
                                          const void *volume, float *projections);
LICAG3D_API int32_t licag3d_backproject_views(const licag3d_run *run, const licag3d_grid *grid,
                                              const licag3d_views *views, const float *projections, float *volume);
LICAG3D_API int32_t licag3d_project_views_grad_frames(const licag3d_run *run, const licag3d_grid *grid,
                                                      const licag3d_views *views, const void *volume,
                                                      const float *weights, double *grad_frames);

LICAG3D_API int32_t licag3d_cuda_project_volume(const licag3d_run *run, const licag3d_grid *grid,
                                                const licag3d_rays *rays, const float *volume, float *projections);
LICAG3D_API int32_t licag3d_cuda_backproject(const licag3d_run *run, const licag3d_grid *grid,
                                             const licag3d_rays *rays, const float *projections, float *volume);
LICAG3D_API int32_t licag3d_cuda_project_volume_grad_rays(const licag3d_run *run, const licag3d_grid *grid,
                                                          const licag3d_rays *rays, const float *volume,
                                                          const float *weights, float *grad_origin,
                                                          float *grad_direction);
LICAG3D_API int32_t licag3d_cuda_project_views(const licag3d_run *run, const licag3d_grid *grid,
                                               const licag3d_views *views, const void *volume, float *projections);
LICAG3D_API int32_t licag3d_cuda_backproject_views(const licag3d_run *run, const licag3d_grid *grid,
                                                   const licag3d_views *views, const float *projections, float *volume);
LICAG3D_API int32_t licag3d_cuda_project_views_grad_frames(const licag3d_run *run, const licag3d_grid *grid,
                                                           const licag3d_views *views, const void *volume,
                                                           const float *weights, double *grad_frames);

#ifdef __cplusplus
}
#endif

#endif  // LICAG3D_VOLUME_H
