// SPDX-License-Identifier: Apache-2.0
// A packet of up to 48 rows: where they lie in the planes, and the end of the decoder, which all ways to compute share.
// Rows of a packet are places; channels and hidden units lie in vectors.
#pragma once

#include "cpu/triplane_simd.h"
#include "cpu/triplane_tasks.h"

LICAG3D_CORE_BEGIN

constexpr int kPacket = 48;
constexpr int kPacketPadded = 64;  // to whole tiles of 32 rows

struct Packet {
  float coordinate[3][kPacket];        // in: texel units
  float fraction[3][kPacket];          // position between two texels
  float inside[3][kPacket];            // 1, or 0 where the border clamps: no slope there
  int32_t texel[3][kPacket];           // first of the four texels in plane XY, XZ, YZ
  float corner[3][4][kPacket];         // weights of the four texels: itself, right, down, both
  float field[kPacket];                // out
  float weight[kPacket];               // in, backward: gradient of each field value; then of the last sum
  float slope[3][kPacket];             // out, backward: gradient of the coordinates
  float partial[kPacket * kWidth];     // last sum, still one number per lane
  float partial_slope[3][kPacket * kWidth];
  float *hidden, *hidden_slope;        // (rows, hp)
  float *features, *features_grad;     // (rows, cp), not folded
  float *feature_slope[3];             // (rows, cp) each: d features / d coordinate
  uint16_t *narrow_features, *narrow_turned, *narrow_slope, *narrow_pair;  // bfloat16, for triplane_amx.h
  bool scattered;                      // in: rows may lie anywhere, so texels are asked for in advance
};

LICAG3D_HD int64_t packet_floats(const TriplaneItem &item) {
  return static_cast<int64_t>(sizeof(Packet) / sizeof(float) + 16) +
         kPacket * ((item.folded ? 0LL : 5LL * item.cp) + 2LL * item.hp) +
         (item.tiles ? kPacketPadded / 2 * (3LL * item.cp + 2LL * item.hp) : 0LL);
}

LICAG3D_HD Packet &make_packet(const TriplaneItem &item, float *scratch) {
  Packet &packet = *reinterpret_cast<Packet *>(scratch);
  float *next = scratch + (sizeof(Packet) / sizeof(float) + 15) / 16 * 16;
  packet.hidden = next, next += kPacket * item.hp;
  packet.hidden_slope = next, next += kPacket * item.hp;
  if (item.folded) return packet;
  packet.features = next, next += kPacket * item.cp;
  packet.features_grad = next, next += kPacket * item.cp;
  for (int a = 0; a < 3; ++a) packet.feature_slope[a] = next, next += kPacket * item.cp;
  if (!item.tiles) return packet;
  // Numbers of two bytes: half as many floats.
  packet.narrow_features = reinterpret_cast<uint16_t *>(next), next += kPacketPadded / 2 * item.cp;
  packet.narrow_turned = reinterpret_cast<uint16_t *>(next), next += kPacketPadded / 2 * item.cp;
  packet.narrow_slope = reinterpret_cast<uint16_t *>(next), next += kPacketPadded / 2 * item.hp;
  packet.narrow_pair = reinterpret_cast<uint16_t *>(next);
  return packet;
}

constexpr int kColumn[3] = {0, 0, 1}, kRow[3] = {1, 2, 2};  // axes of the planes XY, XZ, YZ

// Texels, fractions and weights from the coordinates; clamped at the border like torch's grid_sample(padding_mode=
// "border").
LICAG3D_HD void locate(const TriplaneItem &item, Packet &packet, int rows) {
  const int r = item.resolution;
  const Vf last = splat(static_cast<float>(r - 1));
  const Vi last_cell = splat_int(r > 1 ? r - 2 : 0);
  for (int row = 0; row < rows; row += kWidth) {
    Vi cell[3];
    Vf x[3];
    for (int a = 0; a < 3; ++a) {
      const Vf u = load(packet.coordinate[a] + row);
      const Vf clamped = lesser(greater(u, Vf{}), last);  // NaN becomes 0: an index is always valid
      const Vi whole = __builtin_convertvector(clamped, Vi);
      cell[a] = whole < last_cell ? whole : last_cell;
      x[a] = clamped - __builtin_convertvector(cell[a], Vf);
      store(packet.fraction[a] + row, x[a]);
      store(packet.inside[a] + row, ((u > 0.0f) & (u < last)) ? splat(1.0f) : Vf{});
    }
    const Vi texel[3] = {cell[1] * r + cell[0], cell[2] * r + cell[0], cell[2] * r + cell[1]};
    for (int p = 0; p < 3; ++p) {
      std::memcpy(packet.texel[p] + row, &texel[p], sizeof(Vi));
      const Vf across = x[kColumn[p]], down = x[kRow[p]], both = across * down;
      store(packet.corner[p][0] + row, (1.0f - across) - (down - both));
      store(packet.corner[p][1] + row, across - both);
      store(packet.corner[p][2] + row, down - both);
      store(packet.corner[p][3] + row, both);
    }
  }
}

// The four texels of a row in every plane.
struct Corners {
  const float *texel[3];
  int64_t right, down;
};

LICAG3D_HD Corners corners_of(const TriplaneItem &item, const Packet &packet, int row) {
  Corners corners;
  corners.right = item.resolution > 1 ? item.texel_stride : 0;
  corners.down = corners.right * item.resolution;
  for (int p = 0; p < 3; ++p)
    corners.texel[p] = item.texels + p * item.plane_stride + packet.texel[p][row] * item.texel_stride;
  return corners;
}

// Weights of the texels of a row, in registers once for all its channels.
struct CornerWeights {
  Vf of[3][4];
};

LICAG3D_HD CornerWeights weights_of(const Packet &packet, int row) {
  CornerWeights weights;
  for (int p = 0; p < 3; ++p)
    for (int k = 0; k < 4; ++k) weights.of[p][k] = splat(packet.corner[p][k][row]);
  return weights;
}

// start + the bilinear samples of the three planes; kWidth channels at c.
LICAG3D_HD Vf gather_values(const CornerWeights &weights, const Corners &corners, int c, Vf start) {
  Vf sum[3] = {start, Vf{}, Vf{}};  // three short chains rather than a long one
  for (int p = 0; p < 3; ++p) {
    const float *t = corners.texel[p] + c;
    sum[p] += weights.of[p][0] * load(t);
    sum[p] += weights.of[p][1] * load(t + corners.right);
    sum[p] += weights.of[p][2] * load(t + corners.down);
    sum[p] += weights.of[p][3] * load(t + corners.down + corners.right);
  }
  return sum[0] + (sum[1] + sum[2]);
}

// The same with the derivatives along x, y, z; fraction holds the row's three fractions.
LICAG3D_HD Vf gather_slopes(const Corners &corners, const Vf *fraction, int c, Vf sum, Vf *slope) {
  for (int a = 0; a < 3; ++a) slope[a] = Vf{};
  for (int p = 0; p < 3; ++p) {
    const float *t = corners.texel[p] + c;
    const Vf t00 = load(t), t10 = load(t + corners.down);
    const Vf d0 = load(t + corners.right) - t00, d1 = load(t + corners.down + corners.right) - t10;
    const Vf s0 = t00 + fraction[kColumn[p]] * d0, s1 = t10 + fraction[kColumn[p]] * d1;
    const Vf step = s1 - s0;
    sum += s0 + fraction[kRow[p]] * step;
    slope[kRow[p]] += step;
    slope[kColumn[p]] += d0 + fraction[kRow[p]] * (d1 - d0);
  }
  return sum;
}

// packet.field from packet.partial; with kSlopes, weight turns into the gradient of the decoder's last sum.
template <bool kSlopes>
LICAG3D_HD void finish(const TriplaneItem &item, Packet &packet, int rows) {
  for (int row = 0; row < rows; row += kWidth) {
    const Vf z = sum_rows(packet.partial + row * kWidth) + item.bias_2;
    Vf slope;
    store(packet.field + row, kSlopes ? softplus_slope(z, slope) : softplus(z));
    if (kSlopes) store(packet.weight + row, load(packet.weight + row) * slope);
  }
}

// packet.slope from packet.partial_slope, times the weight where it is not in there yet.
template <bool kWeighted>
LICAG3D_HD void finish_slopes(Packet &packet, int rows) {
  for (int a = 0; a < 3; ++a)
    for (int row = 0; row < rows; row += kWidth) {
      Vf sum = sum_rows(packet.partial_slope[a] + row * kWidth) * load(packet.inside[a] + row);
      if (!kWeighted) sum *= load(packet.weight + row);
      store(packet.slope[a] + row, sum);
    }
}

LICAG3D_CORE_END
