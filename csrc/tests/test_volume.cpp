// SPDX-License-Identifier: Apache-2.0
// The arithmetic of core/volume.h and core/march.h, and the C entry points on every instruction set.
#include "include/licag3d_volume.h"

#include <sys/mman.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/march.h"
#include "core/volume.h"

namespace core = licag3d::LICAG3D_ISA;

namespace {

licag3d_grid make_grid(int nx, int ny, int nz, double voxel_mm, double step_mm) {
  licag3d_grid grid = {};
  grid.batch = 1;
  grid.size[0] = nx, grid.size[1] = ny, grid.size[2] = nz;
  grid.stride[0] = 1, grid.stride[1] = nx, grid.stride[2] = static_cast<int64_t>(nx) * ny;
  grid.stride_batch = grid.stride[2] * nz;
  for (int a = 0; a < 3; ++a) {
    grid.voxel_size_mm[a] = voxel_mm;
    grid.origin_mm[a] = -0.5 * voxel_mm * (grid.size[a] - 1);
  }
  grid.step_mm = step_mm;
  return grid;
}

struct RaySet {
  std::vector<double> origin, direction;
  licag3d_rays c() const {
    return {origin.data(), direction.data(), static_cast<int64_t>(direction.size() / 3), 1, 1, 0};
  }
};

RaySet random_rays(int count, double spread, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, spread);
  RaySet rays;
  for (int i = 0; i < 3 * count; ++i) rays.origin.push_back(normal(random)), rays.direction.push_back(normal(random));
  return rays;
}

std::vector<float> random_floats(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> out(count);
  for (float &x : out) x = uniform(random);
  return out;
}

void neighbours_are_right() {
  for (float x : {-5.f, -1.5f, -1.f, -0.25f, 0.f, 0.75f, 1.f, 2.5f, 3.f, 3.25f, 4.f, 9.f, -1e30f, 1e30f, NAN}) {
    const core::Neighbours got = core::neighbours(x, 4);
    CHECK(got.index0 >= 0 && got.index0 < 4 && got.index1 >= 0 && got.index1 < 4);
    double expected = 0, value = 0;
    const double field[4] = {1, 10, 100, 1000};
    for (int i = 0; i < 4; ++i) expected += field[i] * std::fmax(0.0, 1 - std::fabs(static_cast<double>(x) - i));
    value = got.weight0 * field[got.index0] + got.weight1 * field[got.index1];
    CHECK_NEAR(value, std::isnan(x) ? 0.0 : expected, 1e-4);
  }
}

void plane_range_holds_all_that_counts() {
  const licag3d_grid grid = make_grid(7, 5, 9, 1.5, 0);
  const RaySet set = random_rays(2000, 6.0, 3);
  const licag3d_rays rays = set.c();
  int inner = 0, met = 0;
  for (int64_t i = 0; i < rays.count; ++i) {
    const core::GridRay ray = core::to_grid(grid, core::load_ray(rays, i));
    const core::PlaneRay plane = core::plane_ray(grid, ray);
    const int nu = grid.size[ray.axis[0]], nv = grid.size[ray.axis[1]], n = grid.size[ray.axis[2]];
    for (int a = 0; a < 2; ++a) CHECK(std::fabs(ray.direction[a]) <= std::fabs(ray.direction[2]));
    for (int k = 0; k < n; ++k) {
      const double u = plane.u0 + k * plane.du, v = plane.v0 + k * plane.dv,
                   w = std::fmin(k + 0.5, plane.high) - std::fmax(k - 0.5, plane.low);
      const bool counts = u > -1 && u < nu && v > -1 && v < nv && w > 0;
      met += counts;
      if (counts) CHECK(k >= plane.range.first && k <= plane.range.last);
      if (k >= plane.range.inner_first && k <= plane.range.inner_last) {
        ++inner;
        CHECK(u > 0 && u < nu - 1 && v > 0 && v < nv - 1 && w == 1);
      }
    }
  }
  CHECK(inner > 100 && met > 1000);
}

// Adjointness and equality of all instruction sets, through the C functions.
void entry_points_agree(double step_mm) {
  const licag3d_grid grid = make_grid(17, 9, 13, 1.2, step_mm);
  const RaySet set = random_rays(777, 9.0, 5);
  const licag3d_rays rays = set.c();
  const std::vector<float> x = random_floats(grid.stride_batch, 1), y = random_floats(rays.count, 2);
  const licag3d_run run = {2, 0, nullptr};
  std::vector<float> plain;
  for (const char *isa : {"plain", "avx2", "avx512"}) {
    if (licag3d_set_isa(isa) != LICAG3D_OK) continue;
    CHECK(std::string(licag3d_isa()) == isa);
    std::vector<float> image(rays.count), back(x.size(), 0.0f), by_origin(3 * rays.count), by_way(3 * rays.count);
    CHECK(licag3d_project_volume(&run, &grid, &rays, x.data(), image.data()) == LICAG3D_OK);
    CHECK(licag3d_backproject(&run, &grid, &rays, y.data(), back.data()) == LICAG3D_OK);
    CHECK(licag3d_project_volume_grad_rays(&run, &grid, &rays, x.data(), y.data(), by_origin.data(), by_way.data()) ==
          LICAG3D_OK);
    double left = 0, right = 0, size = 0;
    for (int64_t i = 0; i < rays.count; ++i) left += double(image[i]) * y[i], size += std::fabs(double(image[i]) * y[i]);
    for (size_t i = 0; i < x.size(); ++i) right += double(x[i]) * back[i];
    CHECK(size > 10);
    CHECK_NEAR(left, right, 1e-6 * size);
    if (plain.empty()) plain = image;
    for (int64_t i = 0; i < rays.count; ++i) CHECK_NEAR(image[i], plain[i], 2e-5);
  }
  licag3d_set_isa(nullptr);
}

// A view from (x, y, z) = (0, -700, 0) turned by `angle` about z and seen on a detector 950 mm away.
std::vector<double> view_frame(double angle, double tilt, int rows, int cols, double spacing) {
  const double c = std::cos(angle), s = std::sin(angle), e = std::cos(tilt), f = std::sin(tilt);
  const double beam[3] = {-s * e, c * e, f}, across[3] = {c, s, 0}, down[3] = {s * f, -c * f, e};
  std::vector<double> out(12);
  for (int a = 0; a < 3; ++a) {
    out[a] = -700 * beam[a];
    out[6 + a] = spacing * across[a], out[9 + a] = spacing * down[a];
    out[3 + a] = 950 * beam[a] - 0.5 * (cols - 1) * out[6 + a] - 0.5 * (rows - 1) * out[9 + a];
  }
  return out;
}

// Views through the C functions: equal to the rays, adjoint, the same bits with and without empty bricks, and binary16.
void views_agree_with_rays(double spacing) {
  const int rows = 23, cols = 37, views = 5;
  licag3d_grid grid = make_grid(41, 33, 27, 1.1, 0);
  std::vector<double> frames;
  RaySet set;
  for (int v = 0; v < views; ++v) {
    const std::vector<double> frame = view_frame(0.7 * v + 0.05, v == 4 ? 1.2 : 0.1 * v + 0.03, rows, cols, spacing);
    frames.insert(frames.end(), frame.begin(), frame.end());
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c)
        for (int a = 0; a < 3; ++a) {
          set.origin.push_back(frame[a]);
          set.direction.push_back(frame[3 + a] + c * frame[6 + a] + r * frame[9 + a]);
        }
  }
  const licag3d_views view = {frames.data(), views, rows, cols};
  grid.origin_mm[0] += 0.13, grid.origin_mm[2] -= 0.17;  // no ray along a plane of voxels, where the slope has two values
  const licag3d_rays rays = set.c();
  const licag3d_run run = {3, 0, nullptr};
  const std::vector<float> y = random_floats(rays.count, 2);
  std::vector<float> x = random_floats(grid.stride_batch, 1);
  for (int z = 0; z < 27; ++z)  // all but a slanted bar is empty
    for (int j = 0; j < 33; ++j)
      for (int i = 0; i < 41; ++i)
        if (std::abs(i - 10 - z / 2) > 3 || std::abs(j - 20) > 3) x[(z * 33 + j) * 41 + i] = 0;
  std::vector<uint16_t> half(x.size(), 0);  // 0 or 1 in binary16
  std::vector<float> ones(x.size());
  for (size_t i = 0; i < x.size(); ++i) ones[i] = x[i] != 0, half[i] = x[i] != 0 ? 0x3c00 : 0;
  for (const char *isa : {"plain", "avx2", "avx512"}) {
    if (licag3d_set_isa(isa) != LICAG3D_OK) continue;
    std::vector<float> image(rays.count), by_rays(rays.count), again(rays.count), back(x.size(), 0.0f);
    CHECK(licag3d_project_views(&run, &grid, &view, x.data(), image.data()) == LICAG3D_OK);
    CHECK(licag3d_project_volume(&run, &grid, &rays, x.data(), by_rays.data()) == LICAG3D_OK);
    grid.flags = LICAG3D_KEEP_EMPTY;
    CHECK(licag3d_project_views(&run, &grid, &view, x.data(), again.data()) == LICAG3D_OK);
    grid.flags = 0;
    CHECK(std::memcmp(image.data(), again.data(), image.size() * sizeof(float)) == 0);
    CHECK(licag3d_backproject_views(&run, &grid, &view, y.data(), back.data()) == LICAG3D_OK);
    double left = 0, right = 0, size = 0;
    for (int64_t i = 0; i < rays.count; ++i) {
      CHECK_NEAR(image[i], by_rays[i], 2e-5);
      left += double(image[i]) * y[i], size += std::fabs(double(image[i]) * y[i]);
    }
    for (size_t i = 0; i < x.size(); ++i) right += double(x[i]) * back[i];
    CHECK(size > 10);
    CHECK_NEAR(left, right, 2e-6 * size);
    CHECK(licag3d_project_views(&run, &grid, &view, ones.data(), image.data()) == LICAG3D_OK);
    grid.flags = LICAG3D_HALF;
    CHECK(licag3d_project_views(&run, &grid, &view, half.data(), again.data()) == LICAG3D_OK);
    grid.flags = 0;
    for (int64_t i = 0; i < rays.count; ++i) CHECK_NEAR(image[i], again[i], 1e-6);
    // The gradient by the frames is the sum of those by the rays.
    std::vector<float> by_origin(3 * rays.count), by_way(3 * rays.count);
    std::vector<double> by_frame(12 * views), sum(12 * views);
    licag3d_project_volume_grad_rays(&run, &grid, &rays, ones.data(), y.data(), by_origin.data(), by_way.data());
    CHECK(licag3d_project_views_grad_frames(&run, &grid, &view, ones.data(), y.data(), by_frame.data()) == LICAG3D_OK);
    for (int64_t i = 0; i < rays.count; ++i) {
      double *out = &sum[i / (rows * cols) * 12];
      const int64_t c = i % cols, r = i / cols % rows;
      for (int a = 0; a < 3; ++a) {
        out[a] += by_origin[3 * i + a];
        out[3 + a] += by_way[3 * i + a];
        out[6 + a] += c * by_way[3 * i + a];
        out[9 + a] += r * by_way[3 * i + a];
      }
    }
    double scale[4] = {};
    for (int i = 0; i < 12 * views; ++i) scale[i % 12 / 3] = std::fmax(scale[i % 12 / 3], std::fabs(sum[i]));
    for (int i = 0; i < 12 * views; ++i) CHECK_NEAR(by_frame[i], sum[i], 0.02 * scale[i % 12 / 3]);
  }
  licag3d_set_isa(nullptr);
}

// Close to 2^31 voxels: the last one must be found. The memory is reserved, and only the pages along the rays are touched.
void the_largest_grid_is_indexed_right() {
  licag3d_grid grid = make_grid(16384, 16384, 7, 1.0, 0);
  grid.flags = LICAG3D_HALF;
  const size_t bytes = 2 * static_cast<size_t>(grid.stride_batch);
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  static_cast<uint16_t *>(memory)[grid.stride_batch - 1] = 0x3c00;
  // Along z through the last voxel, 8191.5 mm from the middle in x and y.
  const double frame[12] = {8191.5, 8191.5, -500, 0, 0, 1000, 0, 1e-3, 0, 1e-3, 0, 0};
  const licag3d_views view = {frame, 1, 1, 1};
  const licag3d_run run = {1, 0, nullptr};
  for (const char *isa : {"plain", "avx2", "avx512"}) {
    if (licag3d_set_isa(isa) != LICAG3D_OK) continue;
    float value = 0;
    CHECK(licag3d_project_views(&run, &grid, &view, memory, &value) == LICAG3D_OK);
    CHECK_NEAR(value, 1.0, 1e-6);
  }
  licag3d_set_isa(nullptr);
  munmap(memory, bytes);
}

void ray_gradient_is_the_difference_quotient(double step_mm) {
  licag3d_grid grid = make_grid(24, 24, 24, 1.0, step_mm);
  std::vector<float> volume(grid.stride_batch);
  for (int z = 0; z < 24; ++z)
    for (int y = 0; y < 24; ++y)
      for (int x = 0; x < 24; ++x)
        volume[(z * 24 + y) * 24 + x] =
            std::exp(-0.02f * ((x - 11.f) * (x - 11.f) + (y - 13.f) * (y - 13.f) + 0.5f * (z - 10.f) * (z - 10.f)));
  RaySet set;
  set.origin = {-30, -26, -20};
  set.direction = {58, 55, 41};
  licag3d_rays rays = set.c();
  const licag3d_run run = {1, 0, nullptr};
  const float one = 1;
  float gradient[6];
  licag3d_project_volume_grad_rays(&run, &grid, &rays, volume.data(), &one, gradient, gradient + 3);
  for (int i = 0; i < 6; ++i) {
    double &value = i < 3 ? set.origin[i] : set.direction[i - 3];
    const double at = value, change = 0.05;
    float low, high;
    value = at - change;
    licag3d_project_volume(&run, &grid, &rays, volume.data(), &low);
    value = at + change;
    licag3d_project_volume(&run, &grid, &rays, volume.data(), &high);
    value = at;
    CHECK_NEAR(gradient[i], (high - low) / (2 * change), 0.02);
  }
}

void malformed_grids_are_refused() {
  const licag3d_run run = {1, 0, nullptr};
  const RaySet set = random_rays(1, 1.0, 1);
  const licag3d_rays rays = set.c();
  float value = 0;
  licag3d_grid grid = make_grid(2048, 2048, 2048, 1.0, 0);
  CHECK(licag3d_project_volume(&run, &grid, &rays, &value, &value) == LICAG3D_BAD_ARGUMENT);
  CHECK(std::strlen(licag3d_last_error()) > 0);
  grid = make_grid(2, 2, 0, 1.0, 0);
  CHECK(licag3d_backproject(&run, &grid, &rays, &value, &value) == LICAG3D_BAD_ARGUMENT);
  CHECK(licag3d_set_isa("sse9") != LICAG3D_OK);
}

}  // namespace

int main() {
  neighbours_are_right();
  plane_range_holds_all_that_counts();
  for (double step_mm : {0.0, 0.45}) {
    entry_points_agree(step_mm);
    ray_gradient_is_the_difference_quotient(step_mm);
  }
  for (double spacing : {0.5, 1.3, 4.0}) views_agree_with_rays(spacing);
  the_largest_grid_is_indexed_right();
  malformed_grids_are_refused();
  return check::report();
}
