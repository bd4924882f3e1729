// SPDX-License-Identifier: Apache-2.0
// C ABI, section "tubes": path length through the union of round cones.
#ifndef LICAG3D_TUBES_H
#define LICAG3D_TUBES_H

#include "licag3d.h"

#ifdef __cplusplus
extern "C" {
#endif

// segments (segment_count, 8): ax, ay, az, ra, bx, by, bz, rb in mm. Each is the union of the balls whose centre and radius
// run linearly from end a to end b. path_mm (count): length of each ray, from its origin to its end, inside their union.
LICAG3D_API int32_t licag3d_project_tubes(const licag3d_run *run, const licag3d_rays *rays, const double *segments,
                                          int64_t segment_count, float *path_mm);
LICAG3D_API int32_t licag3d_cuda_project_tubes(const licag3d_run *run, const licag3d_rays *rays, const double *segments,
                                               int64_t segment_count, float *path_mm);

#ifdef __cplusplus
}
#endif

#endif  // LICAG3D_TUBES_H
