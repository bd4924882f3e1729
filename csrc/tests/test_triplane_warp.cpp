// SPDX-License-Identifier: Apache-2.0
// The phases of the tri-plane kernels for CUDA, run on the host lane by lane in the order of their barriers, against the
// CPU operator: float32 by blocks, bfloat16 by warps on emulated matrix units; and the walk through empty cells.
#include <cstring>
#include <memory>

#include "check.h"
#include "core/triplane.h"
#include "core/triplane_block.h"
#include "core/triplane_cells.h"
#include "core/triplane_tensor.h"
#include "host_warp.h"
#include "triplane_problem.h"

using namespace licag3d::LICAG3D_ISA;
using namespace check;

namespace {

// binary16 of a number that has one.
Half exact_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const Half out = {static_cast<uint16_t>((bits >> 16 & 0x8000u) | (magnitude ? (magnitude >> 13) - (112u << 10) : 0u))};
  CHECK(to_float(out) == value);
  return out;
}

// Aligned room for channel-last planes and padded weights.
template <class Value>
struct Aligned {
  std::vector<Float4> memory;
  explicit Aligned(int64_t count) : memory((count * sizeof(Value) + 15) / 16 + 1) {}
  Value *get() { return reinterpret_cast<Value *>(memory.data()); }
};

template <int kChannels, class Texel, class Convert>
Aligned<Texel> channel_last(const Problem &p, Convert &&convert) {
  const int64_t texels = static_cast<int64_t>(p.resolution) * p.resolution;
  Aligned<Texel> out(3 * texels * kChannels);
  for (int64_t i = 0; i < 3 * texels; ++i)
    for (int c = 0; c < kChannels; ++c)
      out.get()[i * kChannels + c] =
          convert(c < p.channels ? p.planes[(i / texels * p.channels + c) * texels + i % texels] : 0.0f);
  return out;
}

Aligned<float> padded_weights(const Problem &p, int channels, int hidden) {
  Aligned<float> out(weight_floats(channels, hidden));
  float *weights = out.get(), *bias_1 = weights + hidden * channels;
  for (int j = 0; j < p.hidden; ++j) {
    std::copy_n(&p.weight_1[j * p.channels], p.channels, weights + j * channels);
    bias_1[j] = p.bias_1[j];
    bias_1[hidden + j] = p.weight_2[j];
  }
  bias_1[2 * hidden] = p.bias_2[0];
  return out;
}

// Points about the box, some outside, with the values and gradients that the CPU operator gives for them.
struct Expected {
  std::vector<float> points, grad, values;
  Gradients gradients;
  TriplaneBox box;

  Expected(const Problem &p, int count) : grad(random_values(count, 1.0f, 8)), values(count), gradients(p, count) {
    const licag3d_triplane field = p.field();
    points = random_values(3 * count, 3.0f, 7);
    for (int i = 0; i < count; ++i)
      for (int a = 0; a < 3; ++a) points[3 * i + a] += static_cast<float>(field.box_center_mm[a]);
    box = make_box(field.box_center_mm, field.box_size_mm, p.resolution);
    const licag3d_run run = {1, 0, nullptr};
    CHECK(licag3d_query_triplane(&run, &field, points.data(), 0, count, values.data()) == LICAG3D_OK);
    const licag3d_triplane_gradients pointers = gradients.pointers(false);
    CHECK(licag3d_query_triplane_backward(&run, &field, points.data(), 0, count, grad.data(), &pointers) == LICAG3D_OK);
    CHECK(largest(gradients.planes) > 0 && largest(gradients.weight_1) > 0);
  }

  bool place(int i, float *coordinate) const {
    bool inside = true;
    for (int a = 0; a < 3; ++a) {
      const double x = points[3 * i + a];
      inside = inside && x >= box.low[a] && x <= box.high[a];
      coordinate[a] = static_cast<float>(to_texel(box, a, x));
    }
    return inside;
  }
};

struct Found {
  std::vector<float> values, planes, weights, slopes;
  Found(const Problem &p, int count, int channels, int hidden)
      : values(count), planes(3LL * p.resolution * p.resolution * channels), weights(weight_floats(channels, hidden)),
        slopes(3 * count) {}

  void check(const Problem &p, const Expected &expected, int channels, int hidden, double tolerance) const {
    Gradients got(p, static_cast<int64_t>(values.size()));
    const int64_t texels = static_cast<int64_t>(p.resolution) * p.resolution;
    for (int64_t i = 0; i < 3 * texels; ++i)
      for (int c = 0; c < p.channels; ++c)
        got.planes[(i / texels * p.channels + c) * texels + i % texels] = planes[i * channels + c];
    for (int j = 0; j < p.hidden; ++j) {
      std::copy_n(&weights[j * channels], p.channels, &got.weight_1[j * p.channels]);
      got.bias_1[j] = weights[hidden * channels + j];
      got.weight_2[j] = weights[hidden * (channels + 1) + j];
    }
    got.bias_2[0] = weights[hidden * (channels + 2)];
    const Gradients &wanted = expected.gradients;
    CHECK(difference(values, expected.values) < 0.6 * tolerance);
    CHECK(difference(got.planes, wanted.planes) < tolerance);
    CHECK(difference(got.weight_1, wanted.weight_1) < tolerance);
    CHECK(difference(got.bias_1, wanted.bias_1) < tolerance);
    CHECK(difference(got.weight_2, wanted.weight_2) < tolerance);
    CHECK(difference(got.bias_2, wanted.bias_2) < tolerance);
    CHECK(difference(slopes, wanted.origin) < tolerance || p.resolution == 1);
  }
};

template <int kChannels>
void test_block(int channels, int resolution, int hidden) {
  const Problem problem(channels, resolution, hidden);
  const int padded = (hidden + 15) / 16 * 16;
  Aligned<float> texels = channel_last<kChannels, float>(problem, [](float x) { return x; });
  Aligned<float> weights = padded_weights(problem, kChannels, padded);
  const float *bias_1 = weights.get() + padded * kChannels;
  const PointField field = {weights.get(), bias_1, bias_1 + padded, bias_1 + 2 * padded, padded};
  const Expected expected(problem, kBlockThreads);
  Found found(problem, kBlockThreads, kChannels, padded);

  constexpr int kRow = BlockShared<kChannels>::kRow;
  auto shared = std::make_unique<BlockShared<kChannels>>();
  std::memset(static_cast<void *>(shared.get()), 0xff, sizeof(*shared));  // NaN: nothing may count on zeros
  std::vector<ThreadSample<kChannels>> samples(kBlockThreads);
  uint32_t active[kBlockThreads / kLanes32] = {};
  HostWarp warp;
  for (int t = 0; t < kBlockThreads; ++t) {
    float coordinate[3];
    const bool inside = expected.place(t, coordinate);
    active[t / 32] |= static_cast<uint32_t>(inside) << t % 32;
    place_lane(shared->cells[t / 32], t % 32, resolution, inside, coordinate);
  }
  for (int w = 0; w < kBlockThreads / kLanes32; ++w) {
    CHECK(active[w] != 0 && active[w] != 0xffffffffu);
    warp_gather<kChannels>(warp, texels.get(), resolution, shared->cells[w], active[w],
                           [&](int lane, int channel, const float *values) {
                             for (int i = 0; i < 4; ++i) shared->features[32 * w + lane][channel + i] = values[i];
                           });
  }
  const auto runs = [&](int t) { return (active[t / 32] >> t % 32 & 1) != 0; };
  for (int t = 0; t < kBlockThreads; ++t) {
    block_decode<kChannels>(field, runs(t), expected.grad[t], samples[t], *shared, t);
    found.values[t] = samples[t].field;
  }
  for (int first = 0; first < padded; first += kStage) {
    for (int t = 0; t < kBlockThreads; ++t)
      block_stage<kChannels, true>(field, runs(t), first, samples[t], *shared, t);
    for (int t = 0; t < kBlockThreads; ++t) block_reduce<kChannels>(*shared, padded, first, found.weights.data(), t);
  }
  for (int t = 0; t < kBlockThreads; ++t) block_turn<kChannels>(samples[t], *shared, t);
  for (int w = 0; w < kBlockThreads / kLanes32; ++w) {
    const float *gradient = &shared->features[32 * w][0];
    int64_t added = 0;
    warp_scatter<kChannels>(warp, resolution, shared->cells[w], active[w], gradient, kRow,
                            [&](int64_t at, const Float4 &value) {
                              for (int i = 0; i < 4; ++i) found.planes[at + i] += value.v[i];
                              ++added;
                            });
    // Lanes in one cell add once: fewer additions than one for each lane, corner and plane, where planes are small.
    CHECK(added <= static_cast<int64_t>(3 * 32 * kChannels) &&
          (resolution > 4 || added <= 3LL * resolution * resolution * kChannels));
    warp_slopes<kChannels>(warp, texels.get(), resolution, shared->cells[w], active[w], gradient, kRow,
                           [&](int lane, const float *slope) {
                             for (int a = 0; a < 3; ++a)
                               found.slopes[3 * (32 * w + lane) + a] = slope[a] * static_cast<float>(expected.box.texels_per_mm);
                           });
  }
  found.check(problem, expected, kChannels, padded, 1e-5);
}

// The same numbers as bfloat16 has them.
void round_to_bfloat16(std::vector<float> &values) {
  for (float &value : values) {
    const uint32_t bits = pack_bfloat16(value, 0.0f) << 16;
    std::memcpy(&value, &bits, 4);
  }
}

void test_tensor(int channels, int resolution, int hidden) {
  Problem problem(channels, resolution, hidden);
  round_to_bfloat16(problem.planes);  // so that texels are exact as halves too
  for (float &value : problem.planes) value = std::round(value * 64) / 64;
  const int count = 96;
  const Expected expected(problem, count);
  Aligned<Half> texels = channel_last<kTensorChannels, Half>(problem, exact_half);
  Aligned<float> flat = padded_weights(problem, kTensorChannels, kTensorHidden);
  auto weights = std::make_unique<TensorWeights>();
  for (int t = 0; t < 128; ++t) tensor_weights(flat.get(), *weights, t, 128);
  auto packet = std::make_unique<TensorPacket>();
  std::memset(static_cast<void *>(packet.get()), 0xff, sizeof(*packet));
  auto sums = std::make_unique<TensorSums<HostWarp>>();
  HostWarp warp;
  sums->clear(warp);
  Found found(problem, count, kTensorChannels, kTensorHidden);
  int idle = 0;
  for (int begin = 0; begin < count; begin += kLanes32) {
    uint32_t active = 0;
    for (int lane = 0; lane < kLanes32; ++lane) {
      float coordinate[3];
      const bool inside = expected.place(begin + lane, coordinate);
      active |= static_cast<uint32_t>(inside) << lane;
      place_lane(packet->cells, lane, resolution, inside, coordinate);
      packet->weight[lane] = inside ? expected.grad[begin + lane] : 0.0f;
      idle += !inside;
    }
    tensor_gather(warp, texels.get(), resolution, active, *packet);
    tensor_decode(warp, *weights, *packet);
    const std::vector<float> forward(packet->field, packet->field + kLanes32);
    tensor_decode_backward<true>(warp, *weights, *packet, *sums);
    for (int lane = 0; lane < kLanes32; ++lane) {
      CHECK(std::fabs(packet->field[lane] - forward[lane]) <= 1e-6f * forward[lane]);
      if (active >> lane & 1) found.values[begin + lane] = packet->field[lane];
    }
    warp_scatter<kTensorChannels>(warp, resolution, packet->cells, active, packet->gradient[0], kTensorGradient,
                                  [&](int64_t at, const Float4 &value) {
                                    for (int i = 0; i < 4; ++i) found.planes[at + i] += value.v[i];
                                  });
    warp_slopes<kTensorChannels>(warp, texels.get(), resolution, packet->cells, active, packet->gradient[0], kTensorGradient,
                                 [&](int lane, const float *slope) {
                                   for (int a = 0; a < 3; ++a)
                                     found.slopes[3 * (begin + lane) + a] =
                                         slope[a] * static_cast<float>(expected.box.texels_per_mm);
                                 });
  }
  CHECK(idle > 5);
  tensor_store(warp, *sums, found.weights.data());
  found.check(problem, expected, kTensorChannels, kTensorHidden, 1e-2);
}

// Products of small whole numbers are exact, so that a lane in a wrong place cannot hide behind rounding.
void test_fragments() {
  auto weights = std::make_unique<TensorWeights>();
  std::vector<float> flat(weight_floats(kTensorChannels, kTensorHidden), 0.0f), features(32 * 32);
  for (int j = 0; j < 64; ++j)
    for (int c = 0; c < 32; ++c) flat[j * 32 + c] = static_cast<float>((7 * j + 3 * c) % 11 - 5);
  for (int t = 0; t < 64; ++t) tensor_weights(flat.data(), *weights, t, 64);
  auto packet = std::make_unique<TensorPacket>();
  for (int s = 0; s < 32; ++s)
    for (int c = 0; c < 32; ++c) features[s * 32 + c] = static_cast<float>((5 * s + 2 * c) % 13 - 6);
  for (int s = 0; s < 32; ++s)
    for (int c = 0; c < 16; ++c) packet->features[s][c] = pack_bfloat16(features[s * 32 + 2 * c], features[s * 32 + 2 * c + 1]);
  HostWarp warp;
  for (int tile = 0; tile < 2; ++tile) {
    HostWarp::Regs<uint32_t, 8> a;
    tensor_features(warp, *packet, tile, a);
    for (int j = 0; j < 8; ++j) {
      HostWarp::Regs<float, 4> sum;
      tensor_units(warp, *weights, a, j, sum);
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int sample = 16 * tile + lane / 4 + i / 2 * 8, unit = 8 * j + lane % 4 * 2 + i % 2;
          float exact = 0;
          for (int c = 0; c < 32; ++c) exact += flat[unit * 32 + c] * features[sample * 32 + c];
          CHECK(sum.v[lane][i] == exact);
        }
    }
  }
}

void test_next_sample() {
  const int cells = 11, resolution = 24, samples = 64;
  std::vector<uint8_t> occupied(cells * cells * cells, 0), distance(occupied.size());
  for (int i : {5 * 121 + 4 * 11 + 6, 5 * 121 + 5 * 11 + 6, 9 * 121 + 1 * 11 + 1}) occupied[i] = 1;
  for (int i = 0; i < cells * cells * cells; ++i) {
    int best = 8;
    for (int j = 0; j < cells * cells * cells; ++j)
      if (occupied[j])
        best = std::min(best, std::max({std::abs(i % 11 - j % 11), std::abs(i / 11 % 11 - j / 11 % 11), std::abs(i / 121 - j / 121)}));
    distance[i] = static_cast<uint8_t>(best);
  }
  const CellGrid grid = {distance.data(), cells, static_cast<float>(cells) / resolution};
  const std::vector<float> random = random_values(6 * 500, 8.0f, 3);
  int met = 0, skipped = 0;
  for (int ray = 0; ray < 500; ++ray) {
    float start[3], delta[3];
    for (int a = 0; a < 3; ++a) {
      start[a] = std::min(std::max(12 + random[6 * ray + a], -0.5f), 23.5f);
      delta[a] = std::min(std::max(12 + random[6 * ray + 3 + a], -0.5f), 23.5f) - start[a];
    }
    const float per_sample = 1.0f / samples, per_cell = samples_per_cell(grid, delta, per_sample);
    int next = next_sample(grid, start, delta, per_sample, per_cell, 0, samples);
    for (int i = 0; i < samples; ++i) {
      float coordinate[3];
      for (int a = 0; a < 3; ++a) coordinate[a] = start[a] + (i + 0.5f) * per_sample * delta[a];
      const bool counts = cell_distance(grid, coordinate) == 0;
      CHECK(counts == (next == i));
      met += counts, skipped += !counts;
      if (next == i) next = next_sample(grid, start, delta, per_sample, per_cell, i + 1, samples);
    }
    CHECK(next == samples);
  }
  CHECK(met > 50 && skipped > 10000);
}

}  // namespace

int main() {
  test_block<16>(16, 9, 16);
  test_block<16>(5, 3, 9);
  test_block<32>(32, 12, 64);
  test_block<64>(50, 1, 20);
  test_fragments();
  test_tensor(32, 16, 64);
  test_tensor(20, 3, 33);
  test_tensor(32, 1, 64);
  test_next_sample();
  return check::report();
}
