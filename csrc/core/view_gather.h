// SPDX-License-Identifier: Apache-2.0
// The transpose of the planes rule for whole views, voxel by voxel: a voxel collects from the pixels whose rays pass it
// within one voxel on its plane. No two voxels write to one place, so nothing is atomic and the order of every sum is
// fixed. Weights are those of the projection, so <Ax, y> = <x, A'y> to rounding.
//
// Where the corners of a voxel's reach (two voxels square, on one plane) lie on the detector follows from the dual basis
// of the steps per column and row: with n = per_col x per_row, a point p from the source appears at
//     col = (f.n)/(p.n) p.c* - f.c*,   c* = (per_row x n) / (n.n),   likewise row with r* = (n x per_col) / (n.n),
// where f is the way to pixel (0, 0).
#pragma once

#include "core/views.h"
#include "core/volume.h"

LICAG3D_CORE_BEGIN

// One view in voxel indices, made ready. axes: bit a is set where a ray of the view may run mainly along axis a.
// regular is 0 where the search does not hold (a source in or near the grid, pixels without extent): such views are
// spread ray by ray instead.
struct GatherView {
  double source[3], first[3], per_col[3], per_row[3];
  double normal[3], col_dual[3], row_dual[3];
  double reach, first_col, first_row;  // f.n, f.c*, f.r*
  int axes, regular;
};

LICAG3D_HD double dot3(const double *a, const double *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

LICAG3D_HD void cross3(const double *a, const double *b, double *out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

// Bit a: some ray of the view may have its largest component along a. Exact would be a polygon; bounds over the four
// corners of the detector are enough.
LICAG3D_HD int main_axes(const ViewFrame &frame, int rows, int cols) {
  double least[3], most[3];
  for (int a = 0; a < 3; ++a) {
    double low = 1e300, high = -1e300;
    for (int corner = 0; corner < 4; ++corner) {
      const double way = frame.first[a] + (corner & 1 ? cols - 1 : 0) * frame.per_col[a] +
                         (corner & 2 ? rows - 1 : 0) * frame.per_row[a];
      low = way < low ? way : low;
      high = way > high ? way : high;
    }
    most[a] = fabs(low) > fabs(high) ? fabs(low) : fabs(high);
    least[a] = low > 0 ? low : high < 0 ? -high : 0.0;
  }
  int axes = 0;
  for (int a = 0; a < 3; ++a) {
    bool possible = true;
    for (int b = 0; b < 3; ++b) possible = possible && !(most[a] < least[b] * (1 - 1e-12));
    axes |= possible ? 1 << a : 0;
  }
  return axes;
}

LICAG3D_HD GatherView gather_view(const licag3d_grid &grid, const licag3d_views &views, int64_t v) {
  const ViewFrame frame = view_in_grid(grid, view_mm(views, v));
  GatherView out;
  for (int a = 0; a < 3; ++a)
    out.source[a] = frame.source[a], out.first[a] = frame.first[a], out.per_col[a] = frame.per_col[a],
    out.per_row[a] = frame.per_row[a];
  cross3(out.per_col, out.per_row, out.normal);
  cross3(out.per_row, out.normal, out.col_dual);
  cross3(out.normal, out.per_col, out.row_dual);
  const double inverse = 1.0 / dot3(out.normal, out.normal);
  for (int a = 0; a < 3; ++a) out.col_dual[a] *= inverse, out.row_dual[a] *= inverse;
  out.reach = dot3(out.first, out.normal);
  out.first_col = dot3(out.first, out.col_dual);
  out.first_row = dot3(out.first, out.row_dual);
  out.axes = main_axes(frame, views.rows, views.cols);
  // Regular: every corner of the reach of every voxel lies well in front of the source, seen along the detector's normal,
  // and the source at least four voxels from the grid. NaN makes each comparison false.
  bool regular = out.reach != 0 && inverse < 1e300;
  double away = 0;
  for (int a = 0; a < 3; ++a) {
    const double below = -out.source[a], above = out.source[a] - (grid.size[a] - 1);
    const double outside = below > above ? below : above;
    away = outside > away ? outside : away;
  }
  regular = regular && away >= 4.0;
  for (int corner = 0; corner < 8; ++corner) {
    double p[3];
    for (int a = 0; a < 3; ++a) p[a] = (corner >> a & 1 ? grid.size[a] + 0.5 : -1.5) - out.source[a];
    regular = regular && dot3(p, out.normal) / out.reach > 1e-4;
  }
  out.regular = regular;
  return out;
}

// What a pixel gives: its value times the mm of its ray between two planes, and the ray's main axis.
LICAG3D_HD float pixel_share(const licag3d_grid &grid, const licag3d_views &views, int64_t v, int col, int row,
                             float value, uint8_t &axis) {
  const GridRay ray = to_grid(grid, pixel_ray(view_mm(views, v), col, row));
  axis = static_cast<uint8_t>(ray.axis[2]);
  if (ray.valid != 1 || value == 0.0f) return 0.0f;
  return value * static_cast<float>(ray.length_mm / fabs(ray.direction[2]));
}

// Sum over the pixels of a regular view whose rays give to voxel (x, y, z). share and axis (rows, cols) are those of
// pixel_share.
LICAG3D_HD float gather_voxel(const GatherView &view, const int *voxel, int rows, int cols, const float *share,
                              const uint8_t *axis) {
  float sum = 0.0f;
  const bool mixed = (view.axes & (view.axes - 1)) != 0;
  double p[3];
  for (int a = 0; a < 3; ++a) p[a] = voxel[a] - view.source[a];
  const double depth = dot3(p, view.normal), inverse = 1.0 / depth;
  const double col_ratio = dot3(p, view.col_dual) * inverse, row_ratio = dot3(p, view.row_dual) * inverse;
  const double col = view.reach * col_ratio - view.first_col, row = view.reach * row_ratio - view.first_row;
  // Far outside the detector whatever the reach.
  if (!(col > -1e6 && col < 1e6 && row > -1e6 && row < 1e6)) return 0.0f;
  const int col_mid = static_cast<int>(rint(col)), row_mid = static_cast<int>(rint(row));
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int a = 0; a < 3; ++a) {
    if (!(view.axes >> a & 1)) continue;
    const int u = a == 0 ? 1 : 0, v = a == 2 ? 1 : 2;
    // A ray mainly along a that passes within one voxel.
    if (fabs(p[a]) < fabs(p[u]) - 1.001 || fabs(p[a]) < fabs(p[v]) - 1.001) continue;
    float left = 0, right = 0, up = 0, down = 0;
    for (int corner = 0; corner < 4; ++corner) {
      const float du = corner & 1 ? 1.0f : -1.0f, dv = corner & 2 ? 1.0f : -1.0f;
      const float dn = du * static_cast<float>(view.normal[u]) + dv * static_cast<float>(view.normal[v]);
      const float scale = static_cast<float>(view.reach) / (static_cast<float>(depth) + dn);
      const float dc = scale * (du * static_cast<float>(view.col_dual[u]) + dv * static_cast<float>(view.col_dual[v]) -
                                static_cast<float>(col_ratio) * dn);
      const float dr = scale * (du * static_cast<float>(view.row_dual[u]) + dv * static_cast<float>(view.row_dual[v]) -
                                static_cast<float>(row_ratio) * dn);
      left = dc < left ? dc : left, right = dc > right ? dc : right;
      up = dr < up ? dr : up, down = dr > down ? dr : down;
    }
    // A pixel on the edge has no weight: what rounding brings in or leaves out adds nothing.
    const float margin = 1e-3f + 1e-5f * (right - left + down - up);
    const float offset_c = static_cast<float>(col - col_mid), offset_r = static_cast<float>(row - row_mid);
    const int c0 = static_cast<int>(ceilf(fmaxf(offset_c + left - margin, -2e6f))),
              c1 = static_cast<int>(floorf(fminf(offset_c + right + margin, 2e6f)));
    const int r0 = static_cast<int>(ceilf(fmaxf(offset_r + up - margin, -2e6f))),
              r1 = static_cast<int>(floorf(fminf(offset_r + down + margin, 2e6f)));
    // Seen from the source the voxel stands at way = lambda p. A pixel (dc, dr) away from there meets its plane at
    //     du = (dc (p_a C_u - p_u C_a) + dr (p_a R_u - p_u R_a)) / (lambda p_a + dc C_a + dr R_a)
    // from the voxel, C and R the steps per column and row: no difference of large numbers.
    const float way_a = static_cast<float>(view.reach * inverse * p[a]), low = static_cast<float>(-p[a]);
    const float col_a = static_cast<float>(view.per_col[a]), row_a = static_cast<float>(view.per_row[a]);
    const float col_u = static_cast<float>(p[a] * view.per_col[u] - p[u] * view.per_col[a]),
                col_v = static_cast<float>(p[a] * view.per_col[v] - p[v] * view.per_col[a]),
                row_u = static_cast<float>(p[a] * view.per_row[u] - p[u] * view.per_row[a]),
                row_v = static_cast<float>(p[a] * view.per_row[v] - p[v] * view.per_row[a]);
    const int first_row = r0 > -row_mid ? r0 : -row_mid, last_row = r1 < rows - 1 - row_mid ? r1 : rows - 1 - row_mid;
    const int first_col = c0 > -col_mid ? c0 : -col_mid, last_col = c1 < cols - 1 - col_mid ? c1 : cols - 1 - col_mid;
    for (int r = first_row; r <= last_row; ++r) {
      const float fr = static_cast<float>(r) - offset_r;
      const int64_t line = static_cast<int64_t>(row_mid + r) * cols + col_mid;
      for (int c = first_col; c <= last_col; ++c) {
        const float fc = static_cast<float>(c) - offset_c;
        const float along = way_a + (fc * col_a + fr * row_a), scale = 1.0f / along;
        const float wu = 1.0f - fabsf((fc * col_u + fr * row_u) * scale),
                    wv = 1.0f - fabsf((fc * col_v + fr * row_v) * scale);
        if (!(wu > 0.0f && wv > 0.0f)) continue;
        if (mixed && axis[line + c] != a) continue;
        const float end = low + along, from = low < end ? low : end, to = low < end ? end : low;
        const float begin = from > -0.5f ? from : -0.5f, finish = to < 0.5f ? to : 0.5f;
        if (finish > begin) sum += (finish - begin) * wu * wv * share[line + c];
      }
    }
  }
  return sum;
}

LICAG3D_CORE_END
