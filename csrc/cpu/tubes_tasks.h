// SPDX-License-Identifier: Apache-2.0
// The piece of work of project_tubes that exists once per instruction set.
#pragma once

#include "cpu/isa.h"
#include "include/licag3d_tubes.h"

namespace licag3d {

// Bounding balls of the segments, one array per coordinate so that testing many is SIMD.
struct Balls {
  const double *x, *y, *z, *radius;
  int64_t count;
};

// An image is cut into blocks of rays, blocks into tiles; both keep a list of the segments that their rays can meet.
struct TubesTask {
  const licag3d_rays *rays;
  const double *segments;
  Balls balls;
  float *path_mm;
  int64_t views, rows, cols;  // views * rows * cols == count
  int64_t block_rows, block_cols, tile_rows, tile_cols;
};

}  // namespace licag3d

// Block (view, row of blocks, column of blocks); scratch has room for 2 * balls.count numbers.
LICAG3D_DECLARE_ISA(void tubes_block(const TubesTask &task, int64_t view, int64_t block_row, int64_t block_col,
                                     int32_t *scratch))
