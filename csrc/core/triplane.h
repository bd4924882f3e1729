// SPDX-License-Identifier: Apache-2.0
// Tri-plane rays: clip to the box, midpoints in texel units, and the exact gradient through both. One copy for CPU and
// CUDA. All of this runs once per ray, so it is in double: the samples start from exact end points.
#pragma once

#include "core/platform.h"

LICAG3D_CORE_BEGIN

struct TriplaneBox {
  double low[3], high[3];
  double texels_per_mm;
  int resolution;
};

LICAG3D_HD TriplaneBox make_box(const double *center_mm, double size_mm, int resolution) {
  TriplaneBox box;
  for (int a = 0; a < 3; ++a) {
    box.low[a] = center_mm[a] - size_mm / 2;
    box.high[a] = center_mm[a] + size_mm / 2;
  }
  box.texels_per_mm = resolution / size_mm;
  box.resolution = resolution;
  return box;
}

// Texel coordinate along one axis; texel i has its centre at i.
LICAG3D_HD double to_texel(const TriplaneBox &box, int axis, double mm) {
  return (mm - box.low[axis]) * box.texels_per_mm - 0.5;
}

// The part of a ray inside the box. Sample i of n lies at start + (i + 0.5) / n * delta, texel units.
struct ClippedRay {
  double entry, leave;  // parameters from origin (0) to pixel (1)
  double norm_mm;       // length of the whole vector
  float start[3], delta[3];
  int8_t entry_axis, leave_axis;  // the face that clips there, -1 for the end of the ray itself
  bool hit;
};

// Slab test (Kay and Kajiya, SIGGRAPH 1986). Comparisons are written so that NaN means a miss.
LICAG3D_HD ClippedRay clip_ray(const TriplaneBox &box, const double *origin, const double *direction) {
  ClippedRay ray = {};
  ray.entry = 0.0;
  ray.leave = 1.0;
  ray.entry_axis = ray.leave_axis = -1;
  bool hit = true;
  for (int a = 0; a < 3; ++a) {
    const double o = origin[a], d = direction[a];
    if (d == 0.0) {
      hit = hit && o >= box.low[a] && o <= box.high[a];
      continue;
    }
    const double at_low = (box.low[a] - o) / d, at_high = (box.high[a] - o) / d;
    const double near = d > 0.0 ? at_low : at_high, far = d > 0.0 ? at_high : at_low;
    hit = hit && near <= far;
    if (near > ray.entry) {
      ray.entry = near;
      ray.entry_axis = static_cast<int8_t>(a);
    }
    if (far < ray.leave) {
      ray.leave = far;
      ray.leave_axis = static_cast<int8_t>(a);
    }
  }
  ray.norm_mm = sqrt(direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2]);
  ray.hit = hit && ray.leave > ray.entry && ray.norm_mm > 0.0 && ray.norm_mm < 1e30;
  if (!ray.hit) return ray;
  for (int a = 0; a < 3; ++a) {
    const double first = to_texel(box, a, origin[a] + ray.entry * direction[a]);
    ray.start[a] = static_cast<float>(first);
    ray.delta[a] = static_cast<float>((ray.leave - ray.entry) * direction[a] * box.texels_per_mm);
  }
  return ray;
}

// Step of the midpoint rule, mm.
LICAG3D_HD double step_mm(const ClippedRay &ray, int samples) {
  return (ray.leave - ray.entry) * ray.norm_mm / samples;
}

// Gradients of grad_value * value with respect to the ray, from sums over its samples:
//   field_sum  sum of field_i;   slope[a]  sum of grad_value * step_mm * d field_i / d u_a, texel units;   moment[a]
//   the same weighted with (i + 0.5) / n, which carries how the sample moves along the ray with entry and leave.
LICAG3D_HD void ray_gradient(const TriplaneBox &box, const ClippedRay &ray, const double *direction, int samples,
                             double grad_value, double field_sum, const double *slope, const double *moment,
                             double *grad_origin, double *grad_direction) {
  const double span = ray.leave - ray.entry;
  double along = 0.0, along_moment = 0.0;
  for (int a = 0; a < 3; ++a) {
    const double g = slope[a] * box.texels_per_mm, m = moment[a] * box.texels_per_mm;
    grad_origin[a] = g;
    grad_direction[a] = ray.entry * g + span * m + grad_value * field_sum * span / samples * direction[a] / ray.norm_mm;
    along += g * direction[a];
    along_moment += m * direction[a];
  }
  const double end_value = grad_value * field_sum / samples * ray.norm_mm;
  const double grad_entry = along - along_moment - end_value, grad_leave = along_moment + end_value;
  // entry = (face - origin) / direction on its axis, likewise leave.
  if (ray.entry_axis >= 0) {
    const int a = ray.entry_axis;
    grad_origin[a] -= grad_entry / direction[a];
    grad_direction[a] -= grad_entry * ray.entry / direction[a];
  }
  if (ray.leave_axis >= 0) {
    const int a = ray.leave_axis;
    grad_origin[a] -= grad_leave / direction[a];
    grad_direction[a] -= grad_leave * ray.leave / direction[a];
  }
}

LICAG3D_CORE_END
