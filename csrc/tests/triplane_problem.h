// SPDX-License-Identifier: Apache-2.0
// A small tri-plane field with room for all its gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "include/licag3d_triplane.h"

namespace check {

inline std::vector<float> random_values(int64_t count, float scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float &value : values) value = normal(generator);
  return values;
}

inline double largest(const std::vector<float> &values) {
  double most = 0;
  for (float value : values) most = std::max(most, std::fabs(static_cast<double>(value)));
  return most;
}

inline double difference(const std::vector<float> &a, const std::vector<float> &b) {
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

}  // namespace check
