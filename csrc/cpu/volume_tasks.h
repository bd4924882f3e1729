// SPDX-License-Identifier: Apache-2.0
// The pieces of work of the volume operators that exist once per instruction set. Each does rays [begin, end) of one
// volume. The *_slab functions add to the voxels of [slab_begin, slab_end) along one axis and to no others, so that
// threads never write to the same voxel and the order of the additions is that of the rays, whatever the number of threads.
#pragma once

#include "cpu/isa.h"
#include "include/licag3d_volume.h"

namespace licag3d {

struct ProjectTask {
  const licag3d_grid *grid;
  const licag3d_rays *rays;
  const float *volume;
  const float *turned;    // the same with x and y exchanged (size[1] is the fastest index), or NULL
  float *projections;     // written by project, or
  const float *weights;   // read by grad_rays, which adds to
  float *grad_origin;
  float *grad_direction;
};

// Transpose, in two passes: pack the rays that carry something, then add the packets slab by slab. Packets of rays
// [begin, end), begin a multiple of kChunkRays, go to their own kChunkPackets slots; the type is private to the
// instruction set, packet_bytes() is its size.
constexpr int64_t kChunkRays = 256, kChunkPackets = kChunkRays / 16 + 3;

struct ScatterTask {
  const licag3d_grid *grid;
  const licag3d_rays *rays;
  const float *projections;
  float *volume;
  int64_t first_ray;      // the ray of slot 0
  unsigned char *packets;
  int32_t *counts;        // packets in use per chunk
  int64_t chunks;
};

}  // namespace licag3d

LICAG3D_DECLARE_ISA(void project_planes(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void project_march(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void grad_rays_planes(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void grad_rays_march(const ProjectTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(int64_t packet_bytes(bool march))
LICAG3D_DECLARE_ISA(void pack(const ScatterTask &task, int64_t begin, int64_t end))
LICAG3D_DECLARE_ISA(void scatter_planes(const ScatterTask &task, int axis, int slab_begin, int slab_end))
LICAG3D_DECLARE_ISA(void scatter_march(const ScatterTask &task, int slab_begin, int slab_end))
