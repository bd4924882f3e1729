// SPDX-License-Identifier: Apache-2.0
// The decoded field at a packet of up to 48 points, and its gradients: gather, two small matrix products, softplus.
// Rows of a packet are points; channels and hidden units lie in vectors.
#pragma once

#include "cpu/triplane_matrix.h"
#include "cpu/triplane_tasks.h"

LICAG3D_CORE_BEGIN

constexpr int kPacket = 48;

struct Packet {
  float coordinate[3][kPacket];  // in: texel units
  float fraction[3][kPacket];    // position between two texels
  float inside[3][kPacket];      // 1, or 0 where the border clamps: no slope there
  int32_t texel[3][kPacket];     // first of the four texels in plane XY, XZ, YZ
  float field[kPacket];          // out
  float weight[kPacket];         // in, backward: gradient of each field value
  float slope[3][kPacket];       // out, backward: gradient of the coordinates
  float features_grad_scale;
  float partial[kPacket * kWidth];
  float *features, *features_grad;  // (rows, cp)
  float *feature_slope[3];          // (rows, cp) each: d features / d coordinate
  float *hidden, *hidden_slope;     // (rows, hp)
};

LICAG3D_HD int64_t packet_floats(const TriplaneItem &item) {
  return static_cast<int64_t>(sizeof(Packet) / sizeof(float) + 16) + kPacket * (5LL * item.cp + 2LL * item.hp);
}

LICAG3D_HD Packet &make_packet(const TriplaneItem &item, float *scratch) {
  Packet &packet = *reinterpret_cast<Packet *>(scratch);
  float *next = scratch + (sizeof(Packet) / sizeof(float) + 15) / 16 * 16;
  packet.features = next, next += kPacket * item.cp;
  packet.features_grad = next, next += kPacket * item.cp;
  for (int a = 0; a < 3; ++a) packet.feature_slope[a] = next, next += kPacket * item.cp;
  packet.hidden = next, next += kPacket * item.hp;
  packet.hidden_slope = next;
  return packet;
}

// Texels and fractions from the coordinates; clamped at the border like torch's grid_sample(padding_mode="border").
LICAG3D_HD void locate(const TriplaneItem &item, Packet &packet, int rows) {
  const int r = item.resolution;
  const Vf last = splat(static_cast<float>(r - 1));
  const Vi last_cell = splat_int(r > 1 ? r - 2 : 0);
  for (int row = 0; row < rows; row += kWidth) {
    Vi cell[3];
    for (int a = 0; a < 3; ++a) {
      const Vf u = load(packet.coordinate[a] + row);
      const Vf clamped = lesser(greater(u, Vf{}), last);  // NaN becomes 0: an index is always valid
      const Vi whole = __builtin_convertvector(clamped, Vi);
      cell[a] = whole < last_cell ? whole : last_cell;
      store(packet.fraction[a] + row, clamped - __builtin_convertvector(cell[a], Vf));
      store(packet.inside[a] + row, ((u > 0.0f) & (u < last)) ? splat(1.0f) : Vf{});
    }
    const Vi texel[3] = {cell[1] * r + cell[0], cell[2] * r + cell[0], cell[2] * r + cell[1]};
    for (int p = 0; p < 3; ++p) std::memcpy(packet.texel[p] + row, &texel[p], sizeof(Vi));
  }
}

// features = mean over the planes of the bilinear samples; with kSlopes also their derivatives along x, y, z.
template <bool kSlopes>
LICAG3D_HD void gather(const TriplaneItem &item, Packet &packet, int rows) {
  const int64_t cp = item.cp, plane_stride = static_cast<int64_t>(item.resolution) * item.resolution * cp;
  const int64_t right = item.resolution > 1 ? cp : 0, down = item.resolution > 1 ? cp * item.resolution : 0;
  constexpr int kColumn[3] = {0, 0, 1}, kRow[3] = {1, 2, 2};  // axes of the planes XY, XZ, YZ
  constexpr float kThird = 1.0f / 3.0f;
  for (int row = 0; row < rows; ++row) {
    const float *corner[3];
    Vf x[3];
    for (int p = 0; p < 3; ++p) corner[p] = item.texels + p * plane_stride + packet.texel[p][row] * cp;
    for (int a = 0; a < 3; ++a) x[a] = splat(packet.fraction[a][row]);
    for (int64_t c = 0; c < cp; c += kWidth) {
      Vf sum = Vf{}, slope[3] = {Vf{}, Vf{}, Vf{}};
      for (int p = 0; p < 3; ++p) {
        const float *t = corner[p] + c;
        const Vf t00 = load(t), t01 = load(t + right), t10 = load(t + down), t11 = load(t + down + right);
        const Vf d0 = t01 - t00, d1 = t11 - t10;
        const Vf s0 = t00 + x[kColumn[p]] * d0, s1 = t10 + x[kColumn[p]] * d1;
        const Vf step = s1 - s0;
        sum += s0 + x[kRow[p]] * step;
        if (kSlopes) {
          slope[kRow[p]] += step;
          slope[kColumn[p]] += d0 + x[kRow[p]] * (d1 - d0);
        }
      }
      store(packet.features + row * cp + c, sum * kThird);
      if (kSlopes)
        for (int a = 0; a < 3; ++a) store(packet.feature_slope[a] + row * cp + c, slope[a] * kThird);
    }
  }
}

// packet.field from packet.features. With kSlopes, hidden keeps the activations, hidden_slope their derivatives, and
// weight turns into the gradient of the decoder's last sum.
template <bool kSlopes>
LICAG3D_HD void decode(const TriplaneItem &item, Packet &packet, int rows) {
  const int hp = item.hp;
  product<Start::row>(rows, hp, item.cp, packet.features, item.cp, 1, item.weight_1t, hp, packet.hidden, hp,
                      item.bias_1);
  for (int row = 0; row < rows; ++row) {
    float *hidden = packet.hidden + row * hp;
    Vf sum = Vf{};
    for (int j = 0; j < hp; j += kWidth) {
      Vf slope;
      const Vf h = kSlopes ? softplus_slope(load(hidden + j), slope) : softplus(load(hidden + j));
      if (kSlopes) {
        store(hidden + j, h);
        store(packet.hidden_slope + row * hp + j, slope);
      }
      sum += h * load(item.weight_2 + j);
    }
    store(packet.partial + row * kWidth, sum);
  }
  for (int row = 0; row < rows; row += kWidth) {
    const Vf z = sum_rows(packet.partial + row * kWidth) + item.bias_2;
    Vf slope;
    store(packet.field + row, kSlopes ? softplus_slope(z, slope) : softplus(z));
    if (kSlopes) store(packet.weight + row, load(packet.weight + row) * slope);
  }
}

// Gradients of the decoder weights (added to gradient, laid out as in TriplaneRecord) and of the features.
template <bool kWeights>
LICAG3D_HD void decode_backward(const TriplaneItem &item, Packet &packet, int rows, float *gradient) {
  const int cp = item.cp, hp = item.hp;
  float *grad_bias_1 = gradient + cp * hp, *grad_weight_2 = grad_bias_1 + hp, *grad_bias_2 = grad_weight_2 + hp;
  for (int j = 0; j < hp; j += kWidth) {
    const Vf weight_2 = load(item.weight_2 + j);
    Vf sum_2 = Vf{}, sum_1 = Vf{};
    for (int row = 0; row < rows; ++row) {
      const Vf dz = splat(packet.weight[row]);
      float *slope = packet.hidden_slope + row * hp + j;
      const Vf dh = dz * weight_2 * load(slope);
      store(slope, dh);
      if (kWeights) {
        sum_1 += dh;
        sum_2 += dz * load(packet.hidden + row * hp + j);
      }
    }
    if (kWeights) {
      store(grad_bias_1 + j, load(grad_bias_1 + j) + sum_1);
      store(grad_weight_2 + j, load(grad_weight_2 + j) + sum_2);
    }
  }
  if (kWeights) {
    for (int row = 0; row < rows; row += kWidth) {
      const Vf dz = load(packet.weight + row);
      for (int lane = 0; lane < kWidth; ++lane) grad_bias_2[(row + lane) % 16] += dz[lane];
    }
    product<Start::accumulate>(cp, hp, rows, packet.features, 1, cp, packet.hidden_slope, hp, gradient, hp);
  }
  product<Start::zero>(rows, cp, hp, packet.hidden_slope, hp, 1, item.weight_1, cp, packet.features_grad, cp);
}

// packet.slope from the gradient of the features.
LICAG3D_HD void coordinate_slopes(const TriplaneItem &item, Packet &packet, int rows) {
  const int cp = item.cp;
  for (int a = 0; a < 3; ++a) {
    for (int row = 0; row < rows; ++row) {
      Vf sum = Vf{};
      for (int c = 0; c < cp; c += kWidth)
        sum += load(packet.features_grad + row * cp + c) * load(packet.feature_slope[a] + row * cp + c);
      store(packet.partial + row * kWidth, sum);
    }
    for (int row = 0; row < rows; row += kWidth)
      store(packet.slope[a] + row, sum_rows(packet.partial + row * kWidth) * load(packet.inside[a] + row));
  }
}

LICAG3D_CORE_END
