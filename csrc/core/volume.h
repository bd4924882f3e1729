// SPDX-License-Identifier: Apache-2.0
// Line integrals of a voxel field: the trilinear interpolant of the voxel values with zeros outside the grid, so that
// the field falls to zero over one voxel beyond the outermost centres. Shared by CPU and CUDA.
//
// Planes rule (step_mm == 0). With the ray x(t) = o + t d, t in [0, 1], in voxel indices and a the axis of the largest
// |d|, the ray is sampled where it meets the voxel planes x_a = k; the field is bilinear there (P. M. Joseph, IEEE Trans.
// Med. Imaging 1 (1982) 192-196):
//     p = L sum_k w_k f(x(t_k)),   t_k = (k - o_a) / d_a,   L = |d_mm| / |d_a|,
//     w_k = length of [k - 1/2, k + 1/2] that lies between o_a and o_a + d_a,
// so w_k = 1 but at a ray that begins or ends inside the grid, and p changes continuously when it does.
//
// March rule (step_mm = h > 0): midpoints of steps of length h counted from the origin of the ray,
//     p = h sum_i w_i f(o + (i + 1/2) h d/|d|),   w_i = min(1, max(0, |d|/h - i)).
#pragma once

#include "core/platform.h"
#include "core/rays.h"
#include "include/licag3d_volume.h"

LICAG3D_CORE_BEGIN

// The ray in voxel indices, reordered so that [2] is the main axis and u = [0], v = [1] the two others (u < v).
struct GridRay {
  double origin[3];
  double direction[3];
  double length_mm;
  int axis[3];
  int valid;  // 0: not finite, the integral is NaN; 1: usable; 2: no length, the integral is 0
};

LICAG3D_HD GridRay to_grid(const licag3d_grid &grid, const RayMm &ray) {
  GridRay out;
  double index_origin[3], index_direction[3], square = 0;
  for (int a = 0; a < 3; ++a) {
    index_origin[a] = (ray.origin[a] - grid.origin_mm[a]) / grid.voxel_size_mm[a];
    index_direction[a] = ray.direction[a] / grid.voxel_size_mm[a];
    square += ray.direction[a] * ray.direction[a];
  }
  out.length_mm = sqrt(square);
  out.valid = is_finite(ray) ? (square > 0 ? 1 : 2) : 0;
  int main = 0;
  for (int a = 1; a < 3; ++a)
    if (fabs(index_direction[a]) > fabs(index_direction[main])) main = a;
  out.axis[0] = main == 0 ? 1 : 0;
  out.axis[1] = main == 2 ? 1 : 2;
  out.axis[2] = main;
  for (int a = 0; a < 3; ++a) {
    out.origin[a] = index_origin[out.axis[a]];
    out.direction[a] = index_direction[out.axis[a]];
  }
  return out;
}

// A ray ready for the planes rule: transverse position at plane k is u0 + k du, v0 + k dv.
struct PlaneRay {
  double u0, v0, du, dv;
  double low, high;   // extent along the main axis, low <= high
  double plane_mm;    // L: length of the ray between two planes
  int first, last;    // planes where the field may be non-zero and the weight is positive; first > last: none
  int inner_first, inner_last;  // planes where all four neighbours exist and the weight is 1
};

// Clip [low, high] to where low_bound < position + k slope < high_bound.
LICAG3D_HD void clip_planes(double position, double slope, double low_bound, double high_bound, double &low, double &high) {
  if (fabs(slope) < 1e-12) {
    if (!(position > low_bound && position < high_bound)) high = -1e30;
    return;
  }
  double from = (low_bound - position) / slope, to = (high_bound - position) / slope;
  if (from > to) {
    const double swap = from;
    from = to;
    to = swap;
  }
  low = from > low ? from : low;
  high = to < high ? to : high;
}

LICAG3D_HD PlaneRay plane_ray(const licag3d_grid &grid, const GridRay &ray) {
  PlaneRay out;
  const int nu = grid.size[ray.axis[0]], nv = grid.size[ray.axis[1]], n = grid.size[ray.axis[2]];
  const double inverse = 1.0 / ray.direction[2];
  out.du = ray.direction[0] * inverse;
  out.dv = ray.direction[1] * inverse;
  out.u0 = ray.origin[0] - ray.origin[2] * out.du;
  out.v0 = ray.origin[1] - ray.origin[2] * out.dv;
  out.plane_mm = ray.length_mm * fabs(inverse);
  const double end = ray.origin[2] + ray.direction[2];
  out.low = ray.origin[2] < end ? ray.origin[2] : end;
  out.high = ray.origin[2] < end ? end : ray.origin[2];

  double low = out.low - 0.5, high = out.high + 0.5;
  low = low > 0 ? low : 0;
  high = high < n - 1 ? high : n - 1;
  double inner_low = low + 1 > out.low + 0.5 ? (out.low + 0.5 > low ? out.low + 0.5 : low) : low;
  double inner_high = out.high - 0.5 < high ? out.high - 0.5 : high;
  clip_planes(out.u0, out.du, -1.0, nu, low, high);
  clip_planes(out.v0, out.dv, -1.0, nv, low, high);
  // The margin keeps rounding to float from pushing an inner sample past its last neighbour.
  const double margin = 1e-3;
  clip_planes(out.u0, out.du, margin, nu - 1 - margin, inner_low, inner_high);
  clip_planes(out.v0, out.dv, margin, nv - 1 - margin, inner_low, inner_high);
  const bool usable = ray.valid == 1 && high >= low;
  out.first = usable ? static_cast<int>(floor(low)) : 0;
  out.last = usable ? static_cast<int>(ceil(high)) : -1;
  const bool inner = usable && inner_high >= inner_low;
  out.inner_first = inner ? static_cast<int>(ceil(inner_low)) : n;
  out.inner_last = inner ? static_cast<int>(floor(inner_high)) : -1;
  return out;
}

// w_k of the planes rule.
LICAG3D_HD double plane_weight(const PlaneRay &ray, int k) {
  const double from = k - 0.5 > ray.low ? k - 0.5 : ray.low, to = k + 0.5 < ray.high ? k + 0.5 : ray.high;
  return to > from ? to - from : 0.0;
}

// The two neighbours of a coordinate: index of the first, weights of both, zero where a neighbour is outside [0, n).
struct Neighbours {
  int index0, index1;
  float weight0, weight1;
  float slope0, slope1;  // derivatives of the weights, -1 and 1, zero outside
};

LICAG3D_HD Neighbours neighbours(float x, int n) {
  const float below = floorf(x);
  // Far outside, the cast would overflow; both neighbours are outside there anyway.
  const int i = static_cast<int>(fminf(fmaxf(below, -2.0f), static_cast<float>(n)));
  const float fraction = x - below;
  const bool has0 = i >= 0 && i < n, has1 = i + 1 >= 0 && i + 1 < n;
  Neighbours out;
  out.index0 = has0 ? i : 0;
  out.index1 = has1 ? i + 1 : 0;
  out.weight0 = has0 ? 1.0f - fraction : 0.0f;
  out.weight1 = has1 ? fraction : 0.0f;
  out.slope0 = has0 ? -1.0f : 0.0f;
  out.slope1 = has1 ? 1.0f : 0.0f;
  return out;
}

LICAG3D_CORE_END
