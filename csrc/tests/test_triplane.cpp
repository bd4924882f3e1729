// SPDX-License-Identifier: Apache-2.0
// Tri-planes: the shared arithmetic against closed forms and finite differences, and the CPU operator against itself on
// other instruction sets and thread counts.
#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "core/softplus.h"
#include "core/triplane.h"
#include "triplane_problem.h"

using namespace licag3d::LICAG3D_ISA;
using namespace check;

namespace {

void test_softplus() {
  double worst = 0, worst_slope = 0;
  for (double x = -40; x <= 40; x += 0.003) {
    float slope;
    const double value = softplus_slope_one(static_cast<float>(x), slope), y = static_cast<float>(x);
    worst = std::max(worst, std::fabs(value / std::log1p(std::exp(y)) - 1));
    worst_slope = std::max(worst_slope, std::fabs(slope * (1 + std::exp(-y)) - 1));
    CHECK(value == softplus_one(static_cast<float>(x)));
  }
  CHECK(worst < 1e-6);
  CHECK(worst_slope < 1e-6);
}

double chord(const TriplaneBox &box, const double *origin, const double *direction) {
  const ClippedRay ray = clip_ray(box, origin, direction);
  return ray.hit ? step_mm(ray, 7) * 7 : 0.0;
}

void test_clip() {
  const double center[3] = {0, 0, 0};
  const TriplaneBox box = make_box(center, 10.0, 8);
  const double along[3][6] = {{-20, 0, 0, 40, 0, 0}, {-20, -20, 0, 40, 40, 0}, {0, 0, 0, 3, 0, 0}};
  const double expected[3] = {10, 10 * std::sqrt(2.0), 3};
  for (int i = 0; i < 3; ++i) CHECK_NEAR(chord(box, along[i], along[i] + 3), expected[i], 1e-12);
  const double misses[4][6] = {
      {-20, 5.1, 0, 40, 0, 0}, {-20, 0, 0, 14, 0, 0}, {20, 0, 0, 40, 0, 0}, {0, 0, 0, 0, 0, 0}};
  for (const auto &ray : misses) CHECK(!clip_ray(box, ray, ray + 3).hit);
  const double bad[6] = {NAN, 0, 0, 1, INFINITY, 0};
  CHECK(!clip_ray(box, bad, bad + 3).hit);
}

void test_ray_gradient() {
  // A linear field a + b . u has the integral chord * field(midpoint): midpoint rule and gradient are exact.
  const double center[3] = {1, 2, 3}, slope[3] = {0.3, -0.2, 0.5};
  const TriplaneBox box = make_box(center, 10.0, 8);
  const int samples = 5;
  const auto value = [&](const double *v) {
    const ClippedRay ray = clip_ray(box, v, v + 3);
    double u = 2.0;
    for (int a = 0; a < 3; ++a) u += slope[a] * to_texel(box, a, v[a] + 0.5 * (ray.entry + ray.leave) * v[3 + a]);
    return u * (ray.leave - ray.entry) * ray.norm_mm;
  };
  const double rays[3][6] = {{-20, 1, 2, 40, 3, 4}, {0.5, 1.5, 2, 20, 9, -3}, {-9, -4, 3, 11, 7, 1}};
  for (const auto &given : rays) {
    const ClippedRay ray = clip_ray(box, given, given + 3);
    CHECK(ray.hit);
    double sum = 0, s[3] = {}, m[3] = {}, d_origin[3], d_direction[3];
    for (int i = 0; i < samples; ++i) {
      const double fraction = (i + 0.5) / samples;
      sum += 2.0;
      for (int a = 0; a < 3; ++a) {
        sum += slope[a] * (ray.start[a] + fraction * ray.delta[a]);
        s[a] += step_mm(ray, samples) * slope[a];
        m[a] += step_mm(ray, samples) * slope[a] * fraction;
      }
    }
    ray_gradient(box, ray, given + 3, samples, 1.0, sum, s, m, d_origin, d_direction);
    for (int k = 0; k < 6; ++k) {
      double up[6], down[6];
      std::memcpy(up, given, sizeof(up));
      std::memcpy(down, given, sizeof(down));
      up[k] += 1e-5, down[k] -= 1e-5;
      CHECK_NEAR(k < 3 ? d_origin[k] : d_direction[k - 3], (value(up) - value(down)) / 2e-5, 1e-4);
    }
  }
}

void test_threads_and_instruction_sets() {
  const Problem problem(20, 17, 30);
  const licag3d_triplane field = problem.field();
  const int rows = 23, cols = 19, samples = 13;
  std::vector<float> origin(3 * rows * cols), direction(3 * rows * cols);
  for (int i = 0; i < rows * cols; ++i) {
    const float ray[6] = {-40, 3, 5, 90, (i % cols - 9) * 1.1f, (i / cols - 11) * 1.1f};
    std::copy_n(ray, 3, &origin[3 * i]);
    std::copy_n(ray + 3, 3, &direction[3 * i]);
  }
  const licag3d_rays rays = {origin.data(), direction.data(), rows * cols, 1, 0, cols};
  const std::vector<float> grad = random_values(rows * cols, 1.0f, 9);
  const auto everything = [&](int threads) {
    const licag3d_run run = {threads, 0, nullptr};
    std::vector<float> all(rows * cols);
    CHECK(licag3d_render_triplane(&run, &field, &rays, 0, samples, all.data()) == LICAG3D_OK);
    Gradients gradients(problem, rows * cols);
    const licag3d_triplane_gradients pointers = gradients.pointers(true);
    CHECK(licag3d_render_triplane_backward(&run, &field, &rays, 0, samples, grad.data(), &pointers) == LICAG3D_OK);
    for (const auto *part : {&gradients.planes, &gradients.weight_1, &gradients.bias_1, &gradients.weight_2,
                             &gradients.bias_2, &gradients.origin, &gradients.direction})
      all.insert(all.end(), part->begin(), part->end());
    return all;
  };
  CHECK(licag3d_set_isa("plain") == LICAG3D_OK);
  const std::vector<float> plain = everything(1);
  CHECK(std::count(plain.begin(), plain.begin() + rows * cols, 0.0f) > 5);
  CHECK(*std::max_element(plain.begin(), plain.begin() + rows * cols) > 1.0f);
  for (const char *name : {"plain", "avx2", "avx512"}) {
    if (licag3d_set_isa(name) != LICAG3D_OK) continue;
    const std::vector<float> first = everything(1);
    CHECK(difference(first, plain) < 1e-5);
    for (int threads : {1, 2, 3, 7}) CHECK(everything(threads) == first);
  }
  licag3d_set_isa(nullptr);
}

void test_bad_sizes() {
  const Problem problem(4, 4, 4);
  licag3d_triplane field = problem.field();
  const licag3d_run run = {1, 0, nullptr};
  float value = -1.0f, point[3] = {1, -2, 3};
  CHECK(licag3d_query_triplane(&run, &field, point, 0, 1, &value) == LICAG3D_OK && value > 0);
  field.channels = 100000;
  CHECK(licag3d_query_triplane(&run, &field, point, 0, 1, &value) == LICAG3D_BAD_ARGUMENT);
  CHECK(licag3d_last_error()[0] != '\0');
}

}  // namespace

int main() {
  test_softplus();
  test_clip();
  test_ray_gradient();
  test_threads_and_instruction_sets();
  test_bad_sizes();
  return check::report();
}
