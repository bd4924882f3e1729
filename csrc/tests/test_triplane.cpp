// SPDX-License-Identifier: Apache-2.0
// Tri-planes: the shared arithmetic against closed forms and finite differences, the CUDA block run step by step on the
// host against the CPU operator, and the CPU operator against itself on other instruction sets and thread counts.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "core/softplus.h"
#include "core/triplane.h"
#include "core/triplane_block.h"
#include "include/licag3d_triplane.h"

using namespace licag3d::LICAG3D_ISA;

namespace {

std::vector<float> random_values(int64_t count, float scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float &value : values) value = normal(generator);
  return values;
}

double largest(const std::vector<float> &values) {
  double most = 0;
  for (float value : values) most = std::max(most, std::fabs(static_cast<double>(value)));
  return most;
}

double difference(const std::vector<float> &a, const std::vector<float> &b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(static_cast<double>(a[i]) - b[i]));
  return most / std::max(largest(b), 1e-30);
}

struct Problem {
  int channels, resolution, hidden;
  std::vector<float> planes, weight_1, bias_1, weight_2, bias_2;

  Problem(int c, int r, int h)
      : channels(c),
        resolution(r),
        hidden(h),
        planes(random_values(3LL * c * r * r, 1.0f, 1)),
        weight_1(random_values(h * c, 0.3f, 2)),
        bias_1(random_values(h, 0.3f, 3)),
        weight_2(random_values(h, 0.3f, 4)),
        bias_2(1, -0.4f) {}

  licag3d_triplane field() const {
    return {planes.data(),    weight_1.data(),
            bias_1.data(),    weight_2.data(),
            bias_2.data(),    1,
            channels,         resolution,
            hidden,           0,
            {1.0, -2.0, 3.0}, 10.0};
  }
};

struct Gradients {
  std::vector<float> planes, weight_1, bias_1, weight_2, bias_2, origin, direction;

  Gradients(const Problem &p, int64_t rows)
      : planes(p.planes.size()),
        weight_1(p.weight_1.size()),
        bias_1(p.hidden),
        weight_2(p.hidden),
        bias_2(1),
        origin(3 * rows),
        direction(3 * rows) {}

  licag3d_triplane_gradients pointers(bool rays) {
    return {planes.data(),
            weight_1.data(),
            bias_1.data(),
            weight_2.data(),
            bias_2.data(),
            origin.data(),
            rays ? direction.data() : nullptr};
  }
};

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

// The phases of the CUDA block on 128 points, in the order of its barriers.
template <int kChannels>
void test_block(int channels, int resolution, int hidden) {
  const Problem problem(channels, resolution, hidden);
  const licag3d_triplane field = problem.field();
  const int padded = (hidden + 15) / 16 * 16;
  const int64_t texels = static_cast<int64_t>(resolution) * resolution;
  std::vector<Float4> memory(3 * texels * kChannels / 4), packed(weight_floats(kChannels, padded) / 4 + 1);
  float *channel_last = memory[0].v, *weights = packed[0].v;
  for (int64_t i = 0; i < 3 * texels; ++i)
    for (int c = 0; c < kChannels; ++c)
      channel_last[i * kChannels + c] =
          c < channels ? problem.planes[(i / texels * channels + c) * texels + i % texels] : 0.0f;
  float *bias_1 = weights + padded * kChannels;
  for (int j = 0; j < hidden; ++j) {
    std::copy_n(&problem.weight_1[j * channels], channels, weights + j * kChannels);
    bias_1[j] = problem.bias_1[j];
    bias_1[padded + j] = problem.weight_2[j];
  }
  bias_1[2 * padded] = problem.bias_2[0];
  const PointField point = {channel_last, weights, bias_1, bias_1 + padded, bias_1 + 2 * padded, resolution, padded};

  std::vector<float> points = random_values(3 * kBlockThreads, 3.0f, 7), grad = random_values(kBlockThreads, 1.0f, 8);
  for (int i = 0; i < kBlockThreads; ++i)
    for (int a = 0; a < 3; ++a) points[3 * i + a] += static_cast<float>(field.box_center_mm[a]);
  const licag3d_run run = {1, 0, nullptr};
  std::vector<float> expected(kBlockThreads), found(kBlockThreads);
  CHECK(licag3d_query_triplane(&run, &field, points.data(), 0, kBlockThreads, expected.data()) == LICAG3D_OK);
  Gradients wanted(problem, kBlockThreads);
  const licag3d_triplane_gradients pointers = wanted.pointers(false);
  CHECK(licag3d_query_triplane_backward(&run, &field, points.data(), 0, kBlockThreads, grad.data(), &pointers) ==
        LICAG3D_OK);

  const TriplaneBox box = make_box(field.box_center_mm, field.box_size_mm, resolution);
  auto shared = std::make_unique<BlockShared<kChannels>>();
  std::vector<ThreadSample<kChannels>> samples(kBlockThreads);
  std::vector<char> active(kBlockThreads, 1);
  std::vector<float> sums(weight_floats(kChannels, padded)), scattered(3 * texels * kChannels),
      slopes(3 * kBlockThreads);
  for (int t = 0; t < kBlockThreads; ++t) {
    float coordinate[3];
    for (int a = 0; a < 3; ++a) {
      const double x = points[3 * t + a];
      active[t] = active[t] && x >= box.low[a] && x <= box.high[a];
      coordinate[a] = static_cast<float>(to_texel(box, a, x));
    }
    block_decode<kChannels>(point, active[t], coordinate, grad[t], samples[t], shared.get(), t);
    found[t] = samples[t].field;
  }
  CHECK(std::count(active.begin(), active.end(), 1) > 50 && std::count(active.begin(), active.end(), 0) > 5);
  for (int first = 0; first < padded; first += kStage) {
    for (int t = 0; t < kBlockThreads; ++t)
      block_stage<kChannels>(point, active[t], first, samples[t], shared.get(), t);
    for (int t = 0; t < kBlockThreads; ++t) block_reduce<kChannels>(*shared, padded, first, sums.data(), t);
  }
  for (int t = 0; t < kBlockThreads; ++t) {
    if (!active[t]) continue;
    scatter_point<kChannels>(scattered.data(), resolution, samples[t].cell, samples[t].features_grad,
                             [](float *to, const Float4 &value) {
                               for (int i = 0; i < 4; ++i) to[i] += value.v[i];
                             });
    slope_point<kChannels>(point, samples[t].cell, samples[t].features_grad, &slopes[3 * t]);
    for (int a = 0; a < 3; ++a) slopes[3 * t + a] *= static_cast<float>(box.texels_per_mm);
  }
  Gradients got(problem, kBlockThreads);
  for (int64_t i = 0; i < 3 * texels; ++i)
    for (int c = 0; c < channels; ++c)
      got.planes[(i / texels * channels + c) * texels + i % texels] = scattered[i * kChannels + c];
  for (int j = 0; j < hidden; ++j) {
    std::copy_n(&sums[j * kChannels], channels, &got.weight_1[j * channels]);
    got.bias_1[j] = sums[padded * kChannels + j];
    got.weight_2[j] = sums[padded * (kChannels + 1) + j];
  }
  got.bias_2[0] = sums[padded * (kChannels + 2)];
  CHECK(difference(found, expected) < 3e-6);
  CHECK(difference(got.planes, wanted.planes) < 1e-5);
  CHECK(difference(got.weight_1, wanted.weight_1) < 1e-5);
  CHECK(difference(got.bias_1, wanted.bias_1) < 1e-5);
  CHECK(difference(got.weight_2, wanted.weight_2) < 1e-5);
  CHECK(difference(got.bias_2, wanted.bias_2) < 1e-5);
  CHECK(difference(slopes, wanted.origin) < 1e-5 || resolution == 1);
  CHECK(largest(wanted.planes) > 0 && largest(wanted.weight_1) > 0 && (resolution == 1 || largest(wanted.origin) > 0));
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
  test_block<16>(16, 9, 16);
  test_block<16>(5, 7, 9);
  test_block<32>(32, 12, 64);
  test_block<64>(50, 1, 20);
  test_threads_and_instruction_sets();
  test_bad_sizes();
  return check::report();
}
