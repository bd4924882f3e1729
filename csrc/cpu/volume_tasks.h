// SPDX-License-Identifier: Apache-2.0
// The pieces of work of the volume operators that exist once per instruction set. Each does rays [begin, end) of one
// volume. The *_slab functions add to the voxels of [slab_begin, slab_end) along one axis and to no others, so that
// threads never write to the same voxel and the order of the additions is that of the rays, whatever the number of threads.
#pragma once

#include "cpu/isa.h"
#include "include/licag3d_volume.h"

namespace licag3d {

// Bricks of kBrick^3 voxels from the corner of the grid; those at the far sides may be smaller.
constexpr int kBrick = 8;

struct Bricks {
  uint8_t *full;  // per brick (x fastest) 1 where some voxel is not zero, else 0
  int32_t size[3];
};

struct ProjectTask {
  const licag3d_grid *grid;
  const licag3d_rays *rays;    // or
  const licag3d_views *views;
  const void *volume;     // float, or binary16 where the grid says so
  const void *turned;     // the same with x and y exchanged (size[1] is the fastest index), or NULL
  const Bricks *bricks;   // or NULL: look everywhere
  float *projections;     // written by project, or
  const float *weights;   // read by grad_rays, which adds to
  float *grad_origin;     // per ray, or
  float *grad_direction;
  double *grad_frames;    // per chunk of a view
};

// Views are cut into chunks of kChunkRows x kChunkCols pixels, which one thread does at a time.
constexpr int kChunkRows = 16, kChunkCols = 64;

// Transpose, in two passes: pack the rays that carry something, then add the packets slab by slab. Chunks of rays are
// kChunkRays of a list, or a chunk of a view; each has `slots` places for its packets, whose type is private to the
// instruction set, with packet_bytes() as its size.
constexpr int64_t kChunkRays = 256;

constexpr int64_t slots_for(int64_t rays) { return rays / 16 + 3; }

struct ScatterTask {
  const licag3d_grid *grid;
  const licag3d_rays *rays;    // or
  const licag3d_views *views;
  const float *projections;
  float *volume;
  float *turned;          // takes what rays along x give, x and y exchanged; or NULL
  int64_t first_chunk;    // that of slot 0
  int64_t slots;
  unsigned char *packets;
  int32_t *counts;        // packets in use per chunk
  int64_t chunks;
};

}  // namespace licag3d

LICAG3D_DECLARE_ISA(void find_bricks(const licag3d_grid &grid, const void *volume, const Bricks &bricks, int layer))
LICAG3D_DECLARE_ISA(void turn(const licag3d_grid &grid, const void *volume, const Bricks *bricks, int z, void *turned))
LICAG3D_DECLARE_ISA(void project_views(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void grad_views(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void project_planes(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void project_march(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void grad_rays_planes(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void grad_rays_march(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(int64_t packet_bytes(bool march))
LICAG3D_DECLARE_ISA(void pack_rays(const ScatterTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void pack_views(const ScatterTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void add_turned(const licag3d_grid &grid, const float *turned, int z, float *volume))
LICAG3D_DECLARE_ISA(void scatter_planes(const ScatterTask &task, int axis, int slab_begin, int slab_end))
LICAG3D_DECLARE_ISA(void scatter_march(const ScatterTask &task, int slab_begin, int slab_end))
