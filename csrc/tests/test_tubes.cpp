// SPDX-License-Identifier: Apache-2.0
#include "core/tubes.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "include/licag3d_tubes.h"

namespace core = licag3d::LICAG3D_ISA;

namespace {

core::UnitRay ray_between(const double *from, const double *to) {
  core::RayMm ray;
  for (int a = 0; a < 3; ++a) ray.origin[a] = from[a], ray.direction[a] = to[a] - from[a];
  return core::unit_ray(ray);
}

// The interval by brute force: ten thousand balls along the segment.
core::Interval sampled_interval(const core::UnitRay &ray, const double *segment) {
  core::Interval out = {1e300, -1e300};
  for (int i = 0; i <= 10000; ++i) {
    const double s = i / 10000.0, radius = segment[3] + s * (segment[7] - segment[3]);
    double m[3];
    for (int a = 0; a < 3; ++a) m[a] = ray.origin[a] - (segment[a] + s * (segment[4 + a] - segment[a]));
    core::widen_by_ball(m, ray.unit, radius, out);
  }
  out.from = std::max(out.from, 0.0);
  out.to = std::min(out.to, ray.length_mm);
  return out;
}

void intervals_equal_a_union_of_balls() {
  std::mt19937 random(7);
  std::normal_distribution<double> normal(0, 10);
  std::uniform_real_distribution<double> radius(0, 8);
  int met = 0;
  for (int trial = 0; trial < 400; ++trial) {
    double segment[8], from[3], to[3];
    for (int a = 0; a < 3; ++a) {
      segment[a] = normal(random), segment[4 + a] = normal(random);
      from[a] = 3 * normal(random), to[a] = -from[a] + normal(random);
    }
    segment[3] = radius(random), segment[7] = radius(random);
    const core::UnitRay ray = ray_between(from, to);
    const core::Interval got = core::segment_interval(ray, segment), expected = sampled_interval(ray, segment);
    const double length = std::max(0.0, got.to - got.from), wanted = std::max(0.0, expected.to - expected.from);
    met += wanted > 0;
    // Grazing rays gain the square root of what the sampling misses.
    CHECK_NEAR(length, wanted, wanted > 1 ? 1e-3 : 0.05);
    double centre[3], bound;
    core::bounding_ball(segment, centre, &bound);
    if (length > 0) CHECK(core::ray_meets_ball(ray, centre, bound));
    for (const double *end : {segment, segment + 4}) {
      const double m[3] = {end[0] - centre[0], end[1] - centre[1], end[2] - centre[2]};
      CHECK(std::sqrt(core::dot3(m, m)) + end[3] <= bound + 1e-9);
    }
  }
  CHECK(met > 60);
}

void unions_equal_a_sweep() {
  std::mt19937 random(1);
  for (int trial = 0; trial < 500; ++trial) {
    std::uniform_real_distribution<double> place(0, 100), size(-0.5, trial % 5 == 0 ? 40 : 3);
    std::vector<core::Interval> all(trial % 60);
    for (auto &one : all) one.from = place(random), one.to = one.from + size(random);
    core::IntervalUnion<64> pieces;
    for (const auto &one : all) CHECK(pieces.add(one));
    for (int i = 0; i + 1 < pieces.count; ++i) CHECK(pieces.at[i].to < pieces.at[i + 1].from);
    CHECK_NEAR(pieces.length(), core::swept_length(all.size(), [&](int64_t i) { return all[i]; }), 1e-9);
  }
  core::IntervalUnion<3> small;
  for (double from : {0.0, 10.0, 20.0}) CHECK(small.add({from, from + 1}));
  CHECK(!small.add({30, 31}));
  CHECK(small.add({0.5, 25}));
  CHECK(small.count == 1);
  CHECK_NEAR(small.length(), 25, 1e-12);
}

void nothing_is_fine() {
  const licag3d_run run = {1, 0, nullptr};
  const double origin[3] = {0, 0, 0}, way[6] = {1, 0, 0, NAN, 0, 0};
  const licag3d_rays rays = {origin, way, 2, 2, 1, 0};
  float path[2] = {5, 5};
  CHECK(licag3d_project_tubes(&run, &rays, nullptr, 0, path) == LICAG3D_OK);
  CHECK(path[0] == 0 && std::isnan(path[1]));
  CHECK(licag3d_project_tubes(&run, &rays, nullptr, -1, path) == LICAG3D_BAD_ARGUMENT);
}

}  // namespace

int main() {
  intervals_equal_a_union_of_balls();
  unions_equal_a_sweep();
  nothing_is_fine();
  return check::report();
}
