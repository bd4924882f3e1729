// SPDX-License-Identifier: Apache-2.0
// Reading one ray of the C ABI.
#pragma once

#include "core/platform.h"
#include "include/licag3d.h"

LICAG3D_CORE_BEGIN

struct RayMm {
  double origin[3];
  double direction[3];
};

// Ray i in world mm. Everything that follows subtracts a nearby point in double before it goes to float: a source lies
// some 750 mm from the object, where float has no better step than 6e-5 mm.
LICAG3D_HD RayMm load_ray(const licag3d_rays &rays, int64_t i) {
  const int64_t j = rays.origin_group > 1 ? i / rays.origin_group : i;
  RayMm ray;
  if (rays.is_double) {
    const double *origin = static_cast<const double *>(rays.origin) + 3 * j;
    const double *direction = static_cast<const double *>(rays.direction) + 3 * i;
    for (int a = 0; a < 3; ++a) ray.origin[a] = origin[a], ray.direction[a] = direction[a];
  } else {
    const float *origin = static_cast<const float *>(rays.origin) + 3 * j;
    const float *direction = static_cast<const float *>(rays.direction) + 3 * i;
    for (int a = 0; a < 3; ++a) ray.origin[a] = origin[a], ray.direction[a] = direction[a];
  }
  return ray;
}

LICAG3D_HD bool is_finite(const RayMm &ray) {
  // x - x is 0 for finite x and NaN for the rest; works alike in host and device code.
  double sum = 0;
  for (int a = 0; a < 3; ++a) sum += (ray.origin[a] - ray.origin[a]) + (ray.direction[a] - ray.direction[a]);
  return sum == 0.0;
}

LICAG3D_CORE_END
