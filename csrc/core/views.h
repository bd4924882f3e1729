// SPDX-License-Identifier: Apache-2.0
// Rays of a flat detector: the way from the source to pixel (row, col) is first + col per_col + row per_row.
#pragma once

#include "core/rays.h"
#include "include/licag3d_volume.h"

LICAG3D_CORE_BEGIN

struct ViewFrame {
  double source[3], first[3], per_col[3], per_row[3];
};

// View v in world mm.
LICAG3D_HD ViewFrame view_mm(const licag3d_views &views, int64_t v) {
  const double *from = views.frames + 12 * v;
  ViewFrame out;
  for (int a = 0; a < 3; ++a)
    out.source[a] = from[a], out.first[a] = from[3 + a], out.per_col[a] = from[6 + a], out.per_row[a] = from[9 + a];
  return out;
}

// The same in voxel indices.
LICAG3D_HD ViewFrame view_in_grid(const licag3d_grid &grid, const ViewFrame &mm) {
  ViewFrame out;
  for (int a = 0; a < 3; ++a) {
    const double size = grid.voxel_size_mm[a];
    out.source[a] = (mm.source[a] - grid.origin_mm[a]) / size;
    out.first[a] = mm.first[a] / size, out.per_col[a] = mm.per_col[a] / size, out.per_row[a] = mm.per_row[a] / size;
  }
  return out;
}

LICAG3D_HD RayMm pixel_ray(const ViewFrame &mm, double col, double row) {
  RayMm out;
  for (int a = 0; a < 3; ++a) {
    out.origin[a] = mm.source[a];
    out.direction[a] = mm.first[a] + col * mm.per_col[a] + row * mm.per_row[a];
  }
  return out;
}

LICAG3D_CORE_END
