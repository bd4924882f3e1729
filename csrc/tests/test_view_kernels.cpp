// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels for whole views do per ray and per voxel, run on the host: jumping over empty bricks changes no
// bit, and the gather by voxel is the transpose of the projection.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "core/view_gather.h"
#include "core/view_walk.h"
#include "include/licag3d_volume.h"

using namespace licag3d::LICAG3D_ISA;

namespace {

licag3d_grid make_grid(int nx, int ny, int nz) {
  licag3d_grid grid = {};
  grid.batch = 1;
  const int size[3] = {nx, ny, nz};
  const double voxel[3] = {1.1, 0.9, 1.3};
  for (int a = 0; a < 3; ++a) {
    grid.size[a] = size[a];
    grid.voxel_size_mm[a] = voxel[a];
    grid.origin_mm[a] = -0.5 * voxel[a] * (size[a] - 1) + 0.17 * a - 0.13;
  }
  grid.stride[0] = 1, grid.stride[1] = nx, grid.stride[2] = static_cast<int64_t>(nx) * ny;
  grid.stride_batch = grid.stride[2] * nz;
  return grid;
}

// A view from `distance` mm away, turned by `angle` about z and tilted; the detector 1.35 times as far.
void add_view(std::vector<double> &frames, double angle, double tilt, double distance, int rows, int cols, double spacing) {
  const double c = std::cos(angle), s = std::sin(angle), e = std::cos(tilt), f = std::sin(tilt);
  const double beam[3] = {-s * e, c * e, f}, across[3] = {c, s, 0}, down[3] = {s * f, -c * f, e};
  double out[12];
  for (int a = 0; a < 3; ++a) {
    out[a] = -distance * beam[a];
    out[6 + a] = spacing * across[a], out[9 + a] = spacing * down[a];
    out[3 + a] = 1.35 * distance * beam[a] - 0.5 * (cols - 1) * out[6 + a] - 0.5 * (rows - 1) * out[9 + a];
  }
  frames.insert(frames.end(), out, out + 12);
}

std::vector<float> random_floats(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> out(count);
  for (float &x : out) x = uniform(random);
  return out;
}

// Distances as find_bricks_kernel and the three runs of reach_kernel leave them.
std::vector<uint8_t> brick_distances(const licag3d_grid &grid, const std::vector<float> &volume, WalkBricks &bricks) {
  int64_t count = 1;
  for (int a = 0; a < 3; ++a) count *= bricks.size[a] = (grid.size[a] + kWalkBrick - 1) / kWalkBrick;
  std::vector<uint8_t> one(count, kWalkReach), two(count);
  for (int z = 0; z < grid.size[2]; ++z)
    for (int y = 0; y < grid.size[1]; ++y)
      for (int x = 0; x < grid.size[0]; ++x)
        if (volume[z * grid.stride[2] + y * grid.stride[1] + x] != 0.0f)
          one[(static_cast<int64_t>(z / kWalkBrick) * bricks.size[1] + y / kWalkBrick) * bricks.size[0] + x / kWalkBrick] = 0;
  const std::vector<uint8_t> start = one;
  for (int axis = 0; axis < 3; ++axis, std::swap(one, two)) {
    const int64_t stride = axis == 0 ? 1 : axis == 1 ? bricks.size[0] : bricks.size[0] * bricks.size[1];
    for (int64_t i = 0; i < count; ++i)
      two[i] = walk_reach(&one[i], stride, static_cast<int>(i / stride % bricks.size[axis]), bricks.size[axis]);
  }
  for (int64_t i = 0; i < count; i += 7) {  // against the definition
    int best = kWalkReach;
    for (int64_t j = 0; j < count; ++j) {
      if (start[j] != 0) continue;
      int far = 0;
      for (int64_t a = 0, step = 1; a < 3; step *= bricks.size[a++])
        far = std::max<int>(far, std::abs(static_cast<int>(i / step % bricks.size[a]) - static_cast<int>(j / step % bricks.size[a])));
      best = std::min(best, far);
    }
    CHECK(one[i] == best);
  }
  return one;
}

void walks_equal_the_cpu_and_jump_exactly(double spacing) {
  const licag3d_grid grid = make_grid(61, 50, 45);
  const int rows = 21, cols = 33;
  std::vector<double> frames;
  for (int v = 0; v < 6; ++v) add_view(frames, 0.7 * v + 0.05, v == 4 ? 1.2 : 0.1 * v, 700, rows, cols, spacing);
  add_view(frames, 0.4, 0.2, 20, rows, cols, 0.1 * spacing);  // the source within the grid
  const licag3d_views views = {frames.data(), 7, rows, cols};
  std::vector<float> volume = random_floats(grid.stride_batch, 1);
  for (int z = 0; z < 45; ++z)  // all but a slanted bar is empty
    for (int y = 0; y < 50; ++y)
      for (int x = 0; x < 61; ++x)
        if (std::abs(x - 10 - z / 2) > 2 || std::abs(y - 20) > 2) volume[(z * 50 + y) * 61 + x] = 0;
  WalkBricks bricks = {};
  const std::vector<uint8_t> distance = brick_distances(grid, volume, bricks);
  std::vector<float> turned(volume.size());
  for (int z = 0; z < 45; ++z)
    for (int y = 0; y < 50; ++y)
      for (int x = 0; x < 61; ++x) turned[(z * 61 + x) * 50 + y] = volume[(z * 50 + y) * 61 + x];
  const WalkVolume<float> plain = {volume.data(), {1, 61, 61 * 50}}, exchanged = {turned.data(), {50, 1, 61 * 50}};
  const licag3d_run run = {1, 0, nullptr};
  std::vector<float> expected(views.count * rows * cols);
  CHECK(licag3d_project_views(&run, &grid, &views, volume.data(), expected.data()) == LICAG3D_OK);
  int64_t jumped = 0, filled = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(expected.size()); ++i) {
    const int64_t v = i / (rows * cols);
    const GridRay ray = to_grid(grid, pixel_ray(view_mm(views, v), i % cols, i % (rows * cols) / cols));
    const PlaneRay plane = plane_ray(grid, ray);
    const int centre = middle_of(plane.range);
    const PlaneSums all = walk_planes<true>(plain, WalkBricks{}, grid, ray, plane, centre);
    bricks.distance = distance.data();
    const PlaneSums some = walk_planes<true>(plain, bricks, grid, ray, plane, centre);
    const PlaneSums other = walk_planes<true>(exchanged, bricks, grid, ray, plane, centre);
    // Zeros may differ in their sign.
    const float *a = &all.value, *b = &some.value, *c = &other.value;
    for (int k = 0; k < 7; ++k) CHECK(a[k] == b[k] && a[k] == c[k]);
    CHECK_NEAR(some.value * plane.plane_mm, expected[i], 2e-5);
    filled += expected[i] != 0;
    bricks.distance = nullptr;
    const RayBricks here = turn_bricks({distance.data(), {bricks.size[0], bricks.size[1], bricks.size[2]}}, ray.axis);
    if (plane.range.last >= plane.range.first)
      jumped += clear_planes(here, static_cast<float>(plane.u0 + plane.range.first * plane.du),
                             static_cast<float>(plane.v0 + plane.range.first * plane.dv), plane.range.first) > 0;
  }
  CHECK(filled > 100 && jumped > 500);
}

void gather_is_the_transpose(double spacing, double tilt, double turn) {
  const licag3d_grid grid = make_grid(31, 26, 22);
  const int rows = 29, cols = 37, count = 4;
  std::vector<double> frames;
  for (int v = 0; v < count; ++v) add_view(frames, turn + 0.8 * v, tilt, v == 3 ? 90 : 700, rows, cols, v == 3 ? 0.2 * spacing : spacing);
  const licag3d_views views = {frames.data(), count, rows, cols};
  const std::vector<float> y = random_floats(count * rows * cols, 2);
  std::vector<float> share(y.size()), expected(grid.stride_batch, 0.0f), found(grid.stride_batch, 0.0f);
  std::vector<uint8_t> axis(y.size());
  const licag3d_run run = {1, 0, nullptr};
  CHECK(licag3d_backproject_views(&run, &grid, &views, y.data(), expected.data()) == LICAG3D_OK);
  std::vector<GatherView> ready;
  int mixed = 0;
  for (int v = 0; v < count; ++v) {
    ready.push_back(gather_view(grid, views, v));
    CHECK(ready.back().regular == 1);
    int seen = 0;
    for (int i = 0; i < rows * cols; ++i) {
      const int64_t at = static_cast<int64_t>(v) * rows * cols + i;
      share[at] = pixel_share(grid, views, v, i % cols, i / cols, y[at], axis[at]);
      seen |= 1 << axis[at];
    }
    CHECK((seen & ~ready.back().axes) == 0);
    mixed += (seen & (seen - 1)) != 0;
  }
  double largest = 0;
  for (int64_t i = 0; i < grid.stride_batch; ++i) {
    const int voxel[3] = {static_cast<int>(i % 31), static_cast<int>(i / 31 % 26), static_cast<int>(i / 31 / 26)};
    for (int v = 0; v < count; ++v)
      found[i] += gather_voxel(ready[v], voxel, rows, cols, &share[v * rows * cols], &axis[v * rows * cols]);
    largest = std::fmax(largest, std::fabs(expected[i]));
  }
  CHECK(largest > 0.1);
  for (int64_t i = 0; i < grid.stride_batch; ++i) CHECK_NEAR(found[i], expected[i], 1e-5 * std::fmax(largest, 1.0));
  if (turn == 0.88) CHECK(mixed > 0);
  // And the transpose of the projection itself.
  const std::vector<float> x = random_floats(grid.stride_batch, 3);
  std::vector<float> image(y.size());
  CHECK(licag3d_project_views(&run, &grid, &views, x.data(), image.data()) == LICAG3D_OK);
  double left = 0, right = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) left += double(image[i]) * y[i], size += std::fabs(double(image[i]) * y[i]);
  for (size_t i = 0; i < x.size(); ++i) right += double(x[i]) * found[i];
  CHECK_NEAR(left, right, 2e-6 * size);
}

// What cannot be gathered is told, and goes ray by ray.
void odd_views_are_not_regular() {
  const licag3d_grid grid = make_grid(31, 26, 22);
  std::vector<double> frames;
  add_view(frames, 0.3, 0.1, 12, 9, 9, 1.0);   // the source within the grid
  add_view(frames, 0.3, 0.1, 700, 9, 9, 0.0);  // pixels without extent
  add_view(frames, 0.3, 0.1, 700, 9, 9, 1.0);
  frames[24] = NAN;
  add_view(frames, 0.3, 0.1, -700, 9, 9, 1.0);  // looking away
  for (int a = 0; a < 3; ++a) frames[36 + a] = -frames[36 + a];
  add_view(frames, 0.3, 0.1, 700, 9, 9, 1.0);
  const licag3d_views views = {frames.data(), 5, 9, 9};
  for (int v = 0; v < 5; ++v) CHECK(gather_view(grid, views, v).regular == (v == 4));
  // Spreading ray by ray gives the same as the CPU's transpose, also from within.
  const licag3d_views inside = {frames.data(), 1, 9, 9};
  const std::vector<float> y = random_floats(81, 4);
  std::vector<float> expected(grid.stride_batch, 0.0f), found(grid.stride_batch, 0.0f);
  const licag3d_run run = {1, 0, nullptr};
  CHECK(licag3d_backproject_views(&run, &grid, &inside, y.data(), expected.data()) == LICAG3D_OK);
  for (int i = 0; i < 81; ++i)
    spread_planes(grid, to_grid(grid, pixel_ray(view_mm(inside, 0), i % 9, i / 9)), y[i], found.data(),
                  [](float *at, float value) { *at += value; });
  double largest = 0;
  for (float value : expected) largest = std::fmax(largest, std::fabs(value));
  CHECK(largest > 0.1);
  for (int64_t i = 0; i < grid.stride_batch; ++i) CHECK_NEAR(found[i], expected[i], 1e-5 * largest);
}

}  // namespace

int main() {
  for (double spacing : {0.6, 1.7, 6.0}) {
    walks_equal_the_cpu_and_jump_exactly(spacing);
    for (double tilt : {0.0, 0.15, 0.7}) gather_is_the_transpose(spacing, tilt, 0.88);
    gather_is_the_transpose(spacing, 1.5, 0.1);
  }
  odd_views_are_not_regular();
  return check::report();
}
