// SPDX-License-Identifier: Apache-2.0
// The march rule of core/volume.h: samples x(i) = x0 + i dx, i = 0, 1, ..., axes in the order x, y, z.
#pragma once

#include "core/volume.h"

LICAG3D_CORE_BEGIN

struct MarchRay {
  double start[3], slope[3];  // index position of sample 0 and the way to the next
  double count;               // |d| / h, the number of steps, with a fraction
  Range range;
};

LICAG3D_HD MarchRay march_ray(const licag3d_grid &grid, const GridRay &ray) {
  MarchRay out;
  const double per_step = ray.valid == 1 ? grid.step_mm / ray.length_mm : 0.0;
  for (int i = 0; i < 3; ++i) {
    out.slope[ray.axis[i]] = ray.direction[i] * per_step;
    out.start[ray.axis[i]] = ray.origin[i] + 0.5 * ray.direction[i] * per_step;
  }
  out.count = ray.length_mm / grid.step_mm;
  double low = 0, high = ceil(out.count) - 1, inner_low = 0, inner_high = floor(out.count) - 1;
  const double final = high;
  for (int a = 0; a < 3; ++a) {
    clip(out.start[a], out.slope[a], -1.0, grid.size[a], low, high);
    clip(out.start[a], out.slope[a], kInnerMargin, grid.size[a] - 1 - kInnerMargin, inner_low, inner_high);
  }
  // A step far below a voxel over a long ray could overflow int; the sampled part is bounded by the grid, its offset
  // from the source is not. Python bounds step_mm so that this does not happen.
  const bool usable = ray.valid == 1 && final < 1e9;
  out.range = make_range(usable, low, high, inner_low, inner_high);
  out.range.first = out.range.first > 0 ? out.range.first : 0;
  if (out.range.last > final) out.range.last = static_cast<int>(final);
  return out;
}

// Counted from sample `centre`; count likewise.
struct MarchLane {
  float x, y, z, dx, dy, dz, count;
};

LICAG3D_HD MarchLane march_lane(const MarchRay &ray, int centre) {
  MarchLane out;
  out.x = to_float_bounded(ray.start[0] + centre * ray.slope[0]);
  out.y = to_float_bounded(ray.start[1] + centre * ray.slope[1]);
  out.z = to_float_bounded(ray.start[2] + centre * ray.slope[2]);
  out.dx = static_cast<float>(ray.slope[0]);
  out.dy = static_cast<float>(ray.slope[1]);
  out.dz = static_cast<float>(ray.slope[2]);
  out.count = to_float_bounded(ray.count - centre);
  return out;
}

// value = sum w f; g = sum w f'; h = sum w j f', j = i - centre; last = f where w_i < 1.
struct MarchSums {
  float value, gx, gy, gz, hx, hy, hz, last;
};

struct Voxels {
  const float *data;
  int sx, sy, sz, nx, ny, nz;
};

template <bool kGradient>
LICAG3D_HD void add_sample(const Voxels &voxels, const MarchLane &ray, float j, MarchSums &sums) {
  const Neighbours x = neighbours(ray.x + j * ray.dx, voxels.nx), y = neighbours(ray.y + j * ray.dy, voxels.ny),
                   z = neighbours(ray.z + j * ray.dz, voxels.nz);
  const float rest = ray.count - j;
  const float w = rest > 1.0f ? 1.0f : rest > 0.0f ? rest : 0.0f;
  const int x0 = x.index0 * voxels.sx, x1 = x.index1 * voxels.sx, y0 = y.index0 * voxels.sy, y1 = y.index1 * voxels.sy,
            z0 = z.index0 * voxels.sz, z1 = z.index1 * voxels.sz;
  const float a000 = voxels.data[x0 + y0 + z0], a100 = voxels.data[x1 + y0 + z0];
  const float a010 = voxels.data[x0 + y1 + z0], a110 = voxels.data[x1 + y1 + z0];
  const float a001 = voxels.data[x0 + y0 + z1], a101 = voxels.data[x1 + y0 + z1];
  const float a011 = voxels.data[x0 + y1 + z1], a111 = voxels.data[x1 + y1 + z1];
  // Along x first, then y, then z; a neighbour outside counts as zero, even if the voxel read in its place is NaN.
  const float r00 = weighted(x.weight0, a000) + weighted(x.weight1, a100);
  const float r10 = weighted(x.weight0, a010) + weighted(x.weight1, a110);
  const float r01 = weighted(x.weight0, a001) + weighted(x.weight1, a101);
  const float r11 = weighted(x.weight0, a011) + weighted(x.weight1, a111);
  const float p0 = weighted(y.weight0, r00) + weighted(y.weight1, r10);
  const float p1 = weighted(y.weight0, r01) + weighted(y.weight1, r11);
  const float value = weighted(z.weight0, p0) + weighted(z.weight1, p1);
  sums.value += weighted(w, value);
  if (kGradient) {
    const float s00 = weighted(x.slope0, a000) + weighted(x.slope1, a100);
    const float s10 = weighted(x.slope0, a010) + weighted(x.slope1, a110);
    const float s01 = weighted(x.slope0, a001) + weighted(x.slope1, a101);
    const float s11 = weighted(x.slope0, a011) + weighted(x.slope1, a111);
    const float by_x = weighted(z.weight0, weighted(y.weight0, s00) + weighted(y.weight1, s10)) +
                       weighted(z.weight1, weighted(y.weight0, s01) + weighted(y.weight1, s11));
    const float by_y = weighted(z.weight0, weighted(y.slope0, r00) + weighted(y.slope1, r10)) +
                       weighted(z.weight1, weighted(y.slope0, r01) + weighted(y.slope1, r11));
    const float by_z = weighted(z.slope0, p0) + weighted(z.slope1, p1);
    const float wx = weighted(w, by_x), wy = weighted(w, by_y), wz = weighted(w, by_z);
    sums.gx += wx;
    sums.gy += wy;
    sums.gz += wz;
    sums.hx += j * wx;
    sums.hy += j * wy;
    sums.hz += j * wz;
    sums.last += w > 0.0f && w < 1.0f ? value : 0.0f;
  }
}

// The same where all eight neighbours exist and w = 1.
template <bool kGradient>
LICAG3D_HD void add_sample_inner(const Voxels &voxels, const MarchLane &ray, float j, MarchSums &sums) {
  const float x = ray.x + j * ray.dx, y = ray.y + j * ray.dy, z = ray.z + j * ray.dz;
  const int ix = static_cast<int>(x), iy = static_cast<int>(y), iz = static_cast<int>(z);
  const float fx = x - static_cast<float>(ix), fy = y - static_cast<float>(iy), fz = z - static_cast<float>(iz);
  const int at = ix * voxels.sx + iy * voxels.sy + iz * voxels.sz;
  const float a000 = voxels.data[at], a100 = voxels.data[at + voxels.sx];
  const float a010 = voxels.data[at + voxels.sy], a110 = voxels.data[at + voxels.sy + voxels.sx];
  const float a001 = voxels.data[at + voxels.sz], a101 = voxels.data[at + voxels.sz + voxels.sx];
  const float a011 = voxels.data[at + voxels.sz + voxels.sy], a111 = voxels.data[at + voxels.sz + voxels.sy + voxels.sx];
  const float s00 = a100 - a000, s10 = a110 - a010, s01 = a101 - a001, s11 = a111 - a011;
  const float r00 = a000 + fx * s00, r10 = a010 + fx * s10, r01 = a001 + fx * s01, r11 = a011 + fx * s11;
  const float p0 = r00 + fy * (r10 - r00), p1 = r01 + fy * (r11 - r01);
  sums.value += p0 + fz * (p1 - p0);
  if (kGradient) {
    const float q0 = s00 + fy * (s10 - s00), q1 = s01 + fy * (s11 - s01);
    const float by_x = q0 + fz * (q1 - q0), by_y = (r10 - r00) + fz * ((r11 - r01) - (r10 - r00)), by_z = p1 - p0;
    sums.gx += by_x;
    sums.gy += by_y;
    sums.gz += by_z;
    sums.hx += j * by_x;
    sums.hy += j * by_y;
    sums.hz += j * by_z;
  }
}

LICAG3D_HD RayGradient march_gradient(const licag3d_grid &grid, const GridRay &ray, int centre, const MarchSums &sums) {
  const double step = grid.step_mm, from_source = (centre + 0.5) * step;
  const double g[3] = {sums.gx, sums.gy, sums.gz}, h[3] = {sums.hx, sums.hy, sums.hz};
  double unit[3], m[3], along = 0;
  for (int i = 0; i < 3; ++i) unit[ray.axis[i]] = ray.direction[i] * grid.voxel_size_mm[ray.axis[i]] / ray.length_mm;
  RayGradient out;
  for (int a = 0; a < 3; ++a) {
    const double size = grid.voxel_size_mm[a];
    out.origin[a] = step * g[a] / size;
    m[a] = (from_source * g[a] + step * h[a]) / size;  // sum w s_i f', s_i the distance of sample i from the source
    along += m[a] * unit[a];
  }
  // Sample i lies at o + s_i d/|d|, and the weight of the last one grows with |d|.
  for (int a = 0; a < 3; ++a)
    out.direction[a] = step * (m[a] - along * unit[a]) / ray.length_mm + sums.last * unit[a];
  return out;
}

LICAG3D_CORE_END
