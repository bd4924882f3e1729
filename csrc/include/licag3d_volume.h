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
typedef struct licag3d_grid {
  int64_t batch;
  int64_t stride_batch;
  int64_t stride[3];
  int32_t size[3];
  int32_t reserved;
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

LICAG3D_API int32_t licag3d_cuda_project_volume(const licag3d_run *run, const licag3d_grid *grid,
                                                const licag3d_rays *rays, const float *volume, float *projections);
LICAG3D_API int32_t licag3d_cuda_backproject(const licag3d_run *run, const licag3d_grid *grid,
                                             const licag3d_rays *rays, const float *projections, float *volume);
LICAG3D_API int32_t licag3d_cuda_project_volume_grad_rays(const licag3d_run *run, const licag3d_grid *grid,
                                                          const licag3d_rays *rays, const float *volume,
                                                          const float *weights, float *grad_origin,
                                                          float *grad_direction);

#ifdef __cplusplus
}
#endif

#endif  // LICAG3D_VOLUME_H
