// SPDX-License-Identifier: Apache-2.0
// The decoded field at a packet of rows, and its gradients, in two ways. Folded: the first layer lies in the texels and
// a row stays in registers from the gather to the last sum. Not folded: gather, two small matrix products, softplus.
#pragma once

#include "cpu/triplane_amx.h"
#include "cpu/triplane_matrix.h"
#include "cpu/triplane_packet.h"

LICAG3D_CORE_BEGIN

// --- folded ---------------------------------------------------------------------------------------------------------

constexpr int kAhead = 6;  // rows between asking for texels and using them

LICAG3D_HD void prefetch_row(const TriplaneItem &item, const Packet &packet, int row) {
  const Corners corners = corners_of(item, packet, row);
  for (int p = 0; p < 3; ++p)
    for (int j = 0; j < item.width; j += 16) {
      __builtin_prefetch(corners.texel[p] + j);
      __builtin_prefetch(corners.texel[p] + corners.right + j);
      __builtin_prefetch(corners.texel[p] + corners.down + j);
      __builtin_prefetch(corners.texel[p] + corners.down + corners.right + j);
    }
}

// With kBackward, hidden keeps the activations and hidden_slope the gradient of the last sum with respect to the
// preactivations; with kSlopes also partial_slope, that with respect to the coordinates.
template <bool kBackward, bool kSlopes>
LICAG3D_HD void decode_folded(const TriplaneItem &item, Packet &packet, int rows) {
  const int hp = item.hp;
  for (int row = 0; row < rows; ++row) {
    const Corners corners = corners_of(item, packet, row);
    if (row + kAhead < rows) prefetch_row(item, packet, row + kAhead);
    Vf fraction[3], total[3] = {Vf{}, Vf{}, Vf{}}, last = Vf{};
    for (int a = 0; kSlopes && a < 3; ++a) fraction[a] = splat(packet.fraction[a][row]);
    const CornerWeights weights = kSlopes ? CornerWeights{} : weights_of(packet, row);
    for (int j = 0; j < hp; j += kWidth) {
      const Vf bias = load(item.bias_1 + j), weight_2 = load(item.weight_2 + j);
      Vf slope[3], logistic;
      const Vf before = kSlopes ? gather_slopes(corners, fraction, j, bias, slope)
                                : gather_values(weights, corners, j, bias);
      const Vf hidden = kBackward ? softplus_slope_fast(before, logistic) : softplus_fast(before);
      last += hidden * weight_2;
      if (kBackward) {
        const Vf gradient = logistic * weight_2;
        store(packet.hidden + row * hp + j, hidden);
        store(packet.hidden_slope + row * hp + j, gradient);
        for (int a = 0; kSlopes && a < 3; ++a) total[a] += gradient * slope[a];
      }
    }
    store(packet.partial + row * kWidth, last);
    for (int a = 0; kSlopes && a < 3; ++a) store(packet.partial_slope[a] + row * kWidth, total[a]);
  }
}

// The gradient of the preactivations goes to the record at row `at`, that of the small weights to record.weights.
LICAG3D_HD void record_folded(const TriplaneItem &item, const Packet &packet, int rows, const TriplaneRecord &record,
                              int64_t at) {
  const int hp = item.hp;
  float *grad_bias_1 = record.weights, *grad_weight_2 = record.weights + hp;
  for (int j = 0; j < hp; j += kWidth) {
    float *out = record.gathered + (j / 16 * record.samples + at) * 16 + j % 16;
    Vf sum_1 = Vf{}, sum_2 = Vf{};
    for (int row = 0; row < rows; ++row) {
      const Vf dz = splat(packet.weight[row]);
      const Vf gradient = dz * load(packet.hidden_slope + row * hp + j);
      store(out + row * 16, gradient);
      sum_1 += gradient;
      sum_2 += dz * load(packet.hidden + row * hp + j);
    }
    if (record.want_weights) {
      store(grad_bias_1 + j, load(grad_bias_1 + j) + sum_1);
      store(grad_weight_2 + j, load(grad_weight_2 + j) + sum_2);
    }
  }
}

// --- not folded -----------------------------------------------------------------------------------------------------

// features = sum over the planes of the bilinear samples; with kSlopes also their derivatives along x, y, z.
template <bool kSlopes>
LICAG3D_HD void gather_features(const TriplaneItem &item, Packet &packet, int rows) {
  const int cp = item.cp;
  for (int row = 0; row < rows; ++row) {
    if (packet.scattered && row + kAhead < rows) prefetch_row(item, packet, row + kAhead);
    const Corners corners = corners_of(item, packet, row);
    Vf fraction[3];
    for (int a = 0; kSlopes && a < 3; ++a) fraction[a] = splat(packet.fraction[a][row]);
    const CornerWeights weights = kSlopes ? CornerWeights{} : weights_of(packet, row);
    for (int c = 0; c < cp; c += kWidth) {
      Vf slope[3];
      store(packet.features + row * cp + c, kSlopes ? gather_slopes(corners, fraction, c, Vf{}, slope)
                                                    : gather_values(weights, corners, c, Vf{}));
      for (int a = 0; kSlopes && a < 3; ++a) store(packet.feature_slope[a] + row * cp + c, slope[a]);
    }
  }
}

// packet.partial from packet.features. With kBackward, hidden and hidden_slope as in decode_folded.
template <bool kBackward>
LICAG3D_HD void decode_features(const TriplaneItem &item, Packet &packet, int rows) {
  const int hp = item.hp;
  if (item.tiles)
    tile_hidden(item, packet, rows);
  else
    product<Start::row>(rows, hp, item.cp, packet.features, item.cp, 1, item.weight_1t, hp, packet.hidden, hp,
                        item.bias_1);
  for (int row = 0; row < rows; ++row) {
    Vf last = Vf{};
    for (int j = 0; j < hp; j += kWidth) {
      float *hidden = packet.hidden + row * hp + j;
      const Vf weight_2 = load(item.weight_2 + j);
      Vf logistic;
      const Vf h = kBackward ? softplus_slope_fast(load(hidden), logistic) : softplus_fast(load(hidden));
      if (kBackward) {
        store(hidden, h);
        store(packet.hidden_slope + row * hp + j, logistic * weight_2);
      }
      last += h * weight_2;
    }
    store(packet.partial + row * kWidth, last);
  }
}

// features_grad, and the gradients of the decoder weights, added to record.weights.
LICAG3D_HD void backward_features(const TriplaneItem &item, Packet &packet, int rows, const TriplaneRecord &record) {
  const int cp = item.cp, hp = item.hp;
  float *grad_bias_1 = record.weights, *grad_weight_2 = grad_bias_1 + hp;
  for (int j = 0; j < hp; j += kWidth) {
    Vf sum_1 = Vf{}, sum_2 = Vf{};
    for (int row = 0; row < rows; ++row) {
      const Vf dz = splat(packet.weight[row]);
      float *slope = packet.hidden_slope + row * hp + j;
      const Vf gradient = dz * load(slope);
      store(slope, gradient);
      sum_1 += gradient;
      sum_2 += dz * load(packet.hidden + row * hp + j);
    }
    if (record.want_weights) {
      store(grad_bias_1 + j, load(grad_bias_1 + j) + sum_1);
      store(grad_weight_2 + j, load(grad_weight_2 + j) + sum_2);
    }
  }
  float *grad_weight_1t = record.weights + 2 * hp + 16;
  if (item.tiles) return tile_gradients(item, packet, rows, record.want_weights ? grad_weight_1t : nullptr);
  if (record.want_weights)
    product<Start::accumulate>(cp, hp, rows, packet.features, 1, cp, packet.hidden_slope, hp, grad_weight_1t, hp);
  product<Start::zero>(rows, cp, hp, packet.hidden_slope, hp, 1, item.weight_1, cp, packet.features_grad, cp);
}

LICAG3D_HD void record_features(const TriplaneItem &item, const Packet &packet, int rows, const TriplaneRecord &record,
                                int64_t at) {
  for (int c = 0; c < item.cp; c += kWidth) {
    float *out = record.gathered + (c / 16 * record.samples + at) * 16 + c % 16;
    for (int row = 0; row < rows; ++row) store(out + row * 16, load(packet.features_grad + row * item.cp + c));
  }
}

// partial_slope from the gradient of the features.
LICAG3D_HD void slopes_of_features(const TriplaneItem &item, Packet &packet, int rows) {
  const int cp = item.cp;
  for (int a = 0; a < 3; ++a)
    for (int row = 0; row < rows; ++row) {
      Vf sum = Vf{};
      for (int c = 0; c < cp; c += kWidth)
        sum += load(packet.features_grad + row * cp + c) * load(packet.feature_slope[a] + row * cp + c);
      store(packet.partial_slope[a] + row * kWidth, sum);
    }
}

LICAG3D_CORE_END
