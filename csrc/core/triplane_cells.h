// SPDX-License-Identifier: Apache-2.0
// Empty cells of a tri-plane field along a ray: which sample is the next that counts. One copy for CPU and CUDA.
#pragma once

#include "core/platform.h"

LICAG3D_CORE_BEGIN

// Distance of every cell to the nearest occupied one, the largest difference of an index counting, up to a bound; 0 in
// that cell itself. NULL: every cell is occupied.
struct CellGrid {
  const uint8_t *distance;  // (cells, cells, cells), order [z, y, x]
  int cells;
  float cells_per_texel;
};

// Cell of a texel coordinate; the faces of the box belong to the cells inside.
LICAG3D_HD int cell_of(float coordinate, float cells_per_texel, int cells) {
  const int cell = static_cast<int>((coordinate + 0.5f) * cells_per_texel);
  return cell < 0 ? 0 : cell < cells ? cell : cells - 1;
}

LICAG3D_HD int cell_distance(const CellGrid &grid, const float *coordinate) {
  int64_t cell[3];
  for (int a = 0; a < 3; ++a) cell[a] = cell_of(coordinate[a], grid.cells_per_texel, grid.cells);
  return grid.distance[(cell[2] * grid.cells + cell[1]) * grid.cells + cell[0]];
}

// Samples for which a ray stays within one cell's width on its fastest axis; a little short of the truth, so that
// rounding cannot carry a sample over a border.
LICAG3D_HD float samples_per_cell(const CellGrid &grid, const float *delta, float per_sample) {
  float stride = 0.0f;
  for (int a = 0; a < 3; ++a) {
    const float along = fabsf(delta[a]) * per_sample * grid.cells_per_texel;
    stride = along > stride ? along : stride;
  }
  return stride > 1e-6f ? 0.999f / stride : 1e6f;
}

// The first sample in [i, end) that lies in an occupied cell, or end. Sample i lies at start + (i + 0.5) per_sample delta.
// From an empty cell at distance d the ray may advance by d - 1 cells on every axis without meeting another kind.
LICAG3D_HD int next_sample(const CellGrid &grid, const float *start, const float *delta, float per_sample, float per_cell,
                           int i, int end) {
  if (grid.distance == nullptr) return i;
  while (i < end) {
    const float fraction = (static_cast<float>(i) + 0.5f) * per_sample;
    float coordinate[3];
    for (int a = 0; a < 3; ++a) coordinate[a] = start[a] + fraction * delta[a];
    const int distance = cell_distance(grid, coordinate);
    if (distance == 0) return i;
    const float skip = static_cast<float>(distance - 1) * per_cell;
    i += skip > 1.0f ? (skip < 4096.0f ? static_cast<int>(skip) : 4096) : 1;
  }
  return end;
}

LICAG3D_CORE_END
