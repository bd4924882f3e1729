// SPDX-License-Identifier: Apache-2.0
// The pieces of work of the tri-plane operators that exist once per instruction set, and the plain data they share.
//
// Both operators come down to rows: a row is one place where the field is needed, a sample of a ray or a point inside
// the box. Rows are listed first, so that empty cells and rays cost nothing afterwards, and decoded in blocks.
#pragma once

#include "cpu/isa.h"
#include "include/licag3d_triplane.h"

namespace licag3d {

constexpr int kTriplaneLanes = 16;        // rays side by side in a tile
constexpr int kTriplaneBlock = 768;      // rows in a block, the piece of work of a thread
constexpr int kTriplaneSampleBits = 12;   // a row of a ray is ray << 12 | sample
constexpr int kTriplaneTexels = 64;       // texels packed at a time
constexpr int kTriplaneMaxChannels = 512;

// One item of the batch, ready for the packet kernels. cp and hp are channels and hidden rounded up to 16; the padding
// is zero and adds nothing. The mean over the three planes is a sum here, its third lies in the weights.
//
// folded: the decoder's first layer is linear and so is the interpolation of texels, so the two may change places. The
// texels then hold weight_1 t / 3, hp numbers, and no product is left per sample. It pays where there are many samples
// for each texel.
struct TriplaneItem {
  const licag3d_triplane *field;
  const float *texels;  // `width` numbers of texel t of plane p at texels + p * plane_stride + t * texel_stride
  int64_t plane_stride, texel_stride;
  const float *weight_1;   // (hp, cp), a third of it
  const float *weight_1t;  // (cp, hp), a third of it
  const float *bias_1;     // (hp)
  const float *weight_2;   // (hp)
  float bias_2;
  int channels, cp, hidden, hp, resolution;
  int width;  // cp, or hp where folded
  bool folded;
  bool tiles;                 // products in bfloat16 on tile registers (triplane_amx.h)
  const uint16_t *narrow_1;   // weight_1 and weight_1t in bfloat16, pairs of rows side by side: (hp / 2, cp, 2)
  const uint16_t *narrow_1t;  // (cp / 2, hp, 2)
};

// Distance of every cell to the nearest one that is not empty, the largest difference of an index counting; 0 in that
// cell itself, at most kTriplaneReach. NULL: no cell is empty.
struct TriplaneCells {
  const uint8_t *distance;  // (cells, cells, cells), order [z, y, x]
  int cells;
};
constexpr int kTriplaneReach = 8;

// One ray, as its rows need it: sample i of n lies at start + (i + 0.5) / n * delta, texel units.
struct TriplaneRay {
  float start[3], delta[3];
  float step_mm;
  float weight;  // backward: gradient of the integral times step_mm
};

// Rays of one item in the order of their tiles, taken list by list. A list is cut into slabs of samples and groups of
// rays; a piece, one group in one slab, is listed at a time, all groups of a slab before the next slab. With tiles in
// the order of rays_that_hit a list so sweeps through the box with a front a few dozen texels wide and deep, and its
// texels, and later their gradients, are still in the second cache when they are needed again.
struct TriplaneRayTask {
  const licag3d_rays *rays;
  int64_t first_ray;    // of this item, in rays and in the ray gradients
  const int64_t *hits;  // rays that meet the box, in tile order
  int32_t samples;
  const float *grad_values;  // of this item, or NULL
};
constexpr int kTriplaneGroup = 256;       // rays
constexpr double kTriplaneSlab = 64.0;    // texels    // texels

// The list in hand: rays [first, first + count) of the hits.
struct TriplaneList {
  int64_t first, count, groups;
  int32_t slab, slabs;  // samples of a slab, number of slabs
  TriplaneRay *rays;
  uint16_t *mask;  // (tiles, samples): bits of the rays whose sample is not in an empty cell; NULL: all
};

// Rows of rays (rays set) or points, and what the kernels leave for each.
struct TriplaneRows {
  const uint32_t *row;  // ray << 12 | sample, or the index of a point
  int64_t count;
  const TriplaneRay *rays;
  float per_sample;
  const void *points;
  bool points_are_double;
  const float *grad_points;  // backward: gradient of each point's value
  bool scattered;            // neighbours in the list may lie anywhere: ask for texels in advance
  float *field;              // out: softplus output of each row
  float *slope;              // out, backward: (3, slope_stride) weight times d field / d coordinate, texel units; or NULL
  int64_t slope_stride;
};

// What the backward pass of one block leaves for the second phase, in which every thread owns a slice of the plane
// gradient: where each row lies and the gradient of what was gathered there. See triplane.cpp.
struct TriplaneRecord {
  int32_t *texel;   // (3 planes, samples): index of the first of the four texels
  float *fraction;  // (3 axes, samples)
  float *gathered;  // (width / 16, samples, 16)
  float *weights;   // gradients of bias_1 (hp), weight_2 (hp), bias_2 (1, padded to 16), weight_1t (cp, hp; not folded)
  int64_t samples;  // capacity
  int64_t *used;
  bool want_gathered, want_weights;
};

// Where the gradient of the planes goes: 16 channels of texel t of one plane at base + t * texel_stride.
struct TriplaneSlice {
  float *base;
  int64_t texel_stride;
};

}  // namespace licag3d

// Texels [begin, end) of one plane, at most kTriplaneTexels, in the form TriplaneItem asks for; source_stride is the
// distance of texels with channels side by side, 0 for planes of channels.
LICAG3D_DECLARE_ISA(void triplane_pack(const ::licag3d::TriplaneItem &item, const void *plane, int64_t source_stride,
                                       int64_t begin, int64_t end, float *texels))
// The way back: from the slices of one plane, `count` of them, to the gradient of the plane (or NULL), and the share in
// the gradient of weight_1t of these texels, added to weight_1t (cp, hp) (or NULL).
LICAG3D_DECLARE_ISA(void triplane_unpack(const ::licag3d::TriplaneItem &item, const ::licag3d::TriplaneSlice *slices,
                                         const void *plane, int64_t source_stride, int64_t begin, int64_t end,
                                         float *gradient, float *weight_1t))
// Adds a block's share to one slice of the gradient of one plane.
LICAG3D_DECLARE_ISA(void triplane_scatter(const ::licag3d::TriplaneRecord &record, int resolution, int plane, int slice,
                                          const ::licag3d::TriplaneSlice &gradient))
// Shortens distance (cells^3) along one axis; slab is a z, or for axis 2 a y. out must differ from in.
LICAG3D_DECLARE_ISA(void triplane_reach(const uint8_t *in, uint8_t *out, int cells, int axis, int slab))

LICAG3D_DECLARE_ISA(int64_t triplane_scratch_floats(const ::licag3d::TriplaneItem &item))
// Prepares the rays of one group, and where cells are given also what mask says of them.
LICAG3D_DECLARE_ISA(void triplane_prepare_rays(const ::licag3d::TriplaneItem &item,
                                               const ::licag3d::TriplaneCells &cells,
                                               const ::licag3d::TriplaneRayTask &task,
                                               const ::licag3d::TriplaneList &list, int64_t group))
// Writes the rows of one piece, slab * groups + group, and returns how many there are.
LICAG3D_DECLARE_ISA(int64_t triplane_list_rays(const ::licag3d::TriplaneRayTask &task,
                                               const ::licag3d::TriplaneList &list, int64_t piece, uint32_t *rows))
// The same for points [begin, end), of which a piece may have any number.
LICAG3D_DECLARE_ISA(int64_t triplane_list_points(const ::licag3d::TriplaneItem &item,
                                                 const ::licag3d::TriplaneCells &cells, const void *points,
                                                 bool is_double, int64_t begin, int64_t end, uint32_t *rows))
LICAG3D_DECLARE_ISA(void triplane_decode(const ::licag3d::TriplaneItem &item, const ::licag3d::TriplaneRows &rows,
                                         int64_t begin, int64_t end, float *scratch))
LICAG3D_DECLARE_ISA(void triplane_decode_backward(const ::licag3d::TriplaneItem &item,
                                                  const ::licag3d::TriplaneRows &rows, int64_t begin, int64_t end,
                                                  float *scratch, const ::licag3d::TriplaneRecord &record))
// Gradients of the rays of one group from its rows' fields and slopes; piece_begin is where the rows of each piece begin.
LICAG3D_DECLARE_ISA(void triplane_ray_gradients(const ::licag3d::TriplaneItem &item,
                                                const ::licag3d::TriplaneRayTask &task,
                                                const ::licag3d::TriplaneList &list, int64_t group,
                                                const ::licag3d::TriplaneRows &rows, const int64_t *piece_begin,
                                                float *grad_origin, float *grad_direction))
