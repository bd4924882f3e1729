// SPDX-License-Identifier: Apache-2.0
// The pieces of work of the volume operators that exist once per instruction set.
#pragma once

#include "cpu/isa.h"
#include "include/licag3d_volume.h"

LICAG3D_DECLARE_ISA(void project_chunk(const licag3d_grid &grid, const licag3d_rays &rays, const float *volume,
                                       float *projections, int64_t begin, int64_t end))
