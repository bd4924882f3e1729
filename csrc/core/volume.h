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

#include "core/half.h"
#include "core/platform.h"
#include "core/rays.h"
#include "include/licag3d_volume.h"

LICAG3D_CORE_BEGIN

// The ray in voxel indices, axes reordered so that [2] is the main one and u = [0], v = [1] the two others, u < v.
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

// A range of samples of one ray. Outside [first, last] every sample is zero; within [inner_first, inner_last] every
// neighbour exists and the weight is 1, so that nothing need be tested.
struct Range {
  int first, last, inner_first, inner_last;
};

// Narrow [low, high] to the s with low_bound < position + s slope < high_bound.
LICAG3D_HD void clip(double position, double slope, double low_bound, double high_bound, double &low, double &high) {
  if (fabs(slope) < 1e-12) {
    if (!(position > low_bound && position < high_bound)) high = -1e30;
    return;
  }
  const double inverse = 1.0 / slope;
  const double one = (low_bound - position) * inverse, two = (high_bound - position) * inverse;
  const double from = one < two ? one : two, to = one < two ? two : one;
  low = from > low ? from : low;
  high = to < high ? to : high;
}

LICAG3D_HD Range make_range(bool usable, double low, double high, double inner_low, double inner_high) {
  Range out = {0, -1, 1 << 30, -1};
  if (usable && high >= low) {
    out.first = static_cast<int>(floor(low));
    out.last = static_cast<int>(ceil(high));
    if (inner_high >= inner_low) {
      out.inner_first = static_cast<int>(ceil(inner_low));
      out.inner_last = static_cast<int>(floor(inner_high));
    }
  }
  return out;
}

// Keeps rounding to float from pushing an inner sample past its last neighbour, in voxels.
constexpr double kInnerMargin = 2e-3;

// --- one coordinate, one sample --------------------------------------------------------------------------------------

// The two neighbours of a coordinate: indices, and weights that are zero where a neighbour lies outside [0, n).
struct Neighbours {
  int index0, index1;
  float weight0, weight1;
  float slope0, slope1;  // derivatives of the weights
};

LICAG3D_HD Neighbours neighbours(float x, int n) {
  // Comparisons, not fminf: a NaN ends at the lower bound, where no neighbour exists. Shifting by 2 makes the
  // conversion to int, which drops the fraction, a floor.
  const float top = static_cast<float>(n);
  const float above = x > -2.0f ? x : -2.0f;
  const float shifted = (above < top ? above : top) + 2.0f;
  const int i = static_cast<int>(shifted);
  const float fraction = shifted - static_cast<float>(i);
  const bool has0 = i >= 2 && i < n + 2, has1 = i >= 1 && i < n + 1;
  Neighbours out;
  out.index0 = has0 ? i - 2 : 0;
  out.index1 = has1 ? i - 1 : 0;
  out.weight0 = has0 ? 1.0f - fraction : 0.0f;
  out.weight1 = has1 ? fraction : 0.0f;
  out.slope0 = has0 ? -1.0f : 0.0f;
  out.slope1 = has1 ? 1.0f : 0.0f;
  return out;
}

// A voxel counts as zero, even if it is NaN, where its weight is zero because it lies outside.
LICAG3D_HD float weighted(float weight, float value) { return weight != 0.0f ? weight * value : 0.0f; }

// --- planes rule -----------------------------------------------------------------------------------------------------

// Transverse position at plane k is u0 + k du, v0 + k dv.
struct PlaneRay {
  double u0, v0, du, dv;
  double low, high;  // extent along the main axis, low <= high
  double plane_mm;   // L
  Range range;
};

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

  double low = out.low - 0.5 > 0 ? out.low - 0.5 : 0, high = out.high + 0.5 < n - 1 ? out.high + 0.5 : n - 1;
  double inner_low = out.low + 0.5 > 0 ? out.low + 0.5 : 0, inner_high = out.high - 0.5 < n - 1 ? out.high - 0.5 : n - 1;
  clip(out.u0, out.du, -1.0, nu, low, high);
  clip(out.v0, out.dv, -1.0, nv, low, high);
  clip(out.u0, out.du, kInnerMargin, nu - 1 - kInnerMargin, inner_low, inner_high);
  clip(out.v0, out.dv, kInnerMargin, nv - 1 - kInnerMargin, inner_low, inner_high);
  out.range = make_range(ray.valid == 1, low, high, inner_low, inner_high);
  out.range.first = out.range.first > 0 ? out.range.first : 0;
  out.range.last = out.range.last < n - 1 ? out.range.last : n - 1;
  return out;
}

// The same ray in float, counted from a plane near the middle of its range so that little precision is lost.
struct PlaneLane {
  float u, v, du, dv, low, high;
};

LICAG3D_HD float to_float_bounded(double x) { return static_cast<float>(x < -1e6 ? -1e6 : x > 1e6 ? 1e6 : x); }

LICAG3D_HD PlaneLane plane_lane(const PlaneRay &ray, int centre) {
  PlaneLane out;
  out.u = to_float_bounded(ray.u0 + centre * ray.du);
  out.v = to_float_bounded(ray.v0 + centre * ray.dv);
  out.du = static_cast<float>(ray.du);
  out.dv = static_cast<float>(ray.dv);
  out.low = to_float_bounded(ray.low - centre);
  out.high = to_float_bounded(ray.high - centre);
  return out;
}

// Sums over the samples of one ray. With j = k - centre and f' the partial derivatives of the interpolant:
// value = sum w f, gu = sum w f'_u, hu = sum w j f'_u, likewise v; low and high: derivatives of value by the ray's ends.
struct PlaneSums {
  float value, gu, gv, hu, hv, low, high;
};

// One voxel plane: where it starts, strides and sizes along u and v.
template <class Voxel>
struct PlaneOf {
  const Voxel *data;
  int su, sv, nu, nv;
};
using Plane = PlaneOf<float>;

template <bool kGradient, class Voxel>
LICAG3D_HD void add_plane(const PlaneOf<Voxel> &plane, const PlaneLane &ray, float j, PlaneSums &sums) {
  const Neighbours u = neighbours(ray.u + j * ray.du, plane.nu), v = neighbours(ray.v + j * ray.dv, plane.nv);
  const bool cut_low = ray.low > j - 0.5f, cut_high = ray.high < j + 0.5f;
  const float from = cut_low ? ray.low : j - 0.5f, to = cut_high ? ray.high : j + 0.5f;
  const float w = to > from ? to - from : 0.0f;
  const int row0 = v.index0 * plane.sv, row1 = v.index1 * plane.sv;
  const float a00 = to_float(plane.data[row0 + u.index0 * plane.su]);
  const float a10 = to_float(plane.data[row0 + u.index1 * plane.su]);
  const float a01 = to_float(plane.data[row1 + u.index0 * plane.su]);
  const float a11 = to_float(plane.data[row1 + u.index1 * plane.su]);
  const float value = weighted(u.weight0 * v.weight0, a00) + weighted(u.weight1 * v.weight0, a10) +
                      weighted(u.weight0 * v.weight1, a01) + weighted(u.weight1 * v.weight1, a11);
  sums.value += weighted(w, value);
  if (kGradient) {
    const float by_u = weighted(u.slope0 * v.weight0, a00) + weighted(u.slope1 * v.weight0, a10) +
                       weighted(u.slope0 * v.weight1, a01) + weighted(u.slope1 * v.weight1, a11);
    const float by_v = weighted(u.weight0 * v.slope0, a00) + weighted(u.weight1 * v.slope0, a10) +
                       weighted(u.weight0 * v.slope1, a01) + weighted(u.weight1 * v.slope1, a11);
    const float wu = weighted(w, by_u), wv = weighted(w, by_v);
    sums.gu += wu;
    sums.gv += wv;
    sums.hu += j * wu;
    sums.hv += j * wv;
    sums.low -= cut_low && w > 0.0f ? value : 0.0f;
    sums.high += cut_high && w > 0.0f ? value : 0.0f;
  }
}

// The same where all neighbours exist and w = 1.
template <bool kGradient, class Voxel>
LICAG3D_HD void add_plane_inner(const PlaneOf<Voxel> &plane, const PlaneLane &ray, float j, PlaneSums &sums) {
  const float u = ray.u + j * ray.du, v = ray.v + j * ray.dv;
  const int iu = static_cast<int>(u), iv = static_cast<int>(v);
  const float fu = u - static_cast<float>(iu), fv = v - static_cast<float>(iv);
  const int at = iv * plane.sv + iu * plane.su;
  const float a00 = to_float(plane.data[at]), a10 = to_float(plane.data[at + plane.su]);
  const float a01 = to_float(plane.data[at + plane.sv]), a11 = to_float(plane.data[at + plane.sv + plane.su]);
  const float d0 = a10 - a00, d1 = a11 - a01;
  const float row0 = a00 + fu * d0, row1 = a01 + fu * d1;
  sums.value += row0 + fv * (row1 - row0);
  if (kGradient) {
    const float by_u = d0 + fv * (d1 - d0), by_v = row1 - row0;
    sums.gu += by_u;
    sums.gv += by_v;
    sums.hu += j * by_u;
    sums.hv += j * by_v;
  }
}

// The transpose of one ray: add(voxel, share) for everything it gives; a share of no weight is left out.
template <class Add>
LICAG3D_HD void spread_planes(const licag3d_grid &grid, const GridRay &ray, float value, float *volume, Add &&add) {
  const PlaneRay plane = plane_ray(grid, ray);
  const Range &range = plane.range;
  const int centre = range.first + (range.last - range.first) / 2;
  const int nu = grid.size[ray.axis[0]], nv = grid.size[ray.axis[1]];
  const int64_t su = grid.stride[ray.axis[0]], sv = grid.stride[ray.axis[1]];
  const PlaneLane lane = plane_lane(plane, centre);
  const float scaled = value * static_cast<float>(plane.plane_mm);
  for (int k = range.first; k <= range.last; ++k) {
    const float j = static_cast<float>(k - centre);
    const Neighbours u = neighbours(lane.u + j * lane.du, nu), v = neighbours(lane.v + j * lane.dv, nv);
    const float from = lane.low > j - 0.5f ? lane.low : j - 0.5f, to = lane.high < j + 0.5f ? lane.high : j + 0.5f;
    const float w = to > from ? to - from : 0.0f;
    float *data = volume + k * grid.stride[ray.axis[2]];
    for (int corner = 0; corner < 4; ++corner) {
      const float weight = w * (corner & 1 ? u.weight1 : u.weight0) * (corner & 2 ? v.weight1 : v.weight0);
      if (weight != 0.0f)
        add(data + (corner & 2 ? v.index1 : v.index0) * sv + (corner & 1 ? u.index1 : u.index0) * su, weight * scaled);
    }
  }
}

struct RayGradient {
  double origin[3], direction[3];  // x, y, z, per mm
};

// Derivatives of the integral by the ray, from the sums counted from plane `centre`.
LICAG3D_HD RayGradient plane_gradient(const licag3d_grid &grid, const GridRay &ray, const PlaneRay &plane, int centre,
                                      const PlaneSums &sums) {
  const double inverse = 1.0 / ray.direction[2], from_origin = centre - ray.origin[2];
  // sum w t_k f' with t_k = (k - o_a) / d_a
  const double tu = (from_origin * sums.gu + sums.hu) * inverse, tv = (from_origin * sums.gv + sums.hv) * inverse;
  const double end = ray.direction[2] > 0 ? sums.high : sums.low;
  const double by_origin[3] = {sums.gu, sums.gv, -(plane.du * sums.gu + plane.dv * sums.gv) + sums.low + sums.high};
  const double by_direction[3] = {tu, tv, -(plane.du * tu + plane.dv * tv) + end};
  const double square = ray.length_mm * ray.length_mm;
  RayGradient out;
  for (int i = 0; i < 3; ++i) {
    const int a = ray.axis[i];
    const double size = grid.voxel_size_mm[a];
    out.origin[a] = plane.plane_mm * by_origin[i] / size;
    // L = |d_mm| / |d_a| depends on the direction too.
    double length = ray.direction[i] * size / square;
    if (i == 2) length -= inverse / size;
    out.direction[a] = plane.plane_mm * (by_direction[i] / size + sums.value * length);
  }
  return out;
}

LICAG3D_CORE_END
