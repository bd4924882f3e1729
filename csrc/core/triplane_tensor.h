// SPDX-License-Identifier: Apache-2.0
// The tri-plane decoder of up to 32 channels and 64 hidden units on the matrix units of a GPU: inputs rounded to bfloat16,
// sums in float (mma.m16n8k16, PTX ISA 9.7.14). A warp decodes 32 samples, 16 at a time, and keeps its share of the
// gradient of weight_1 in registers from the first sample to the last.
//
// Names: g = lane / 4 and t = lane % 4. Of a 16 x 16 left factor a lane holds four words of two numbers at rows g, g + 8
// and columns 2t, 2t + 8; of a 16 x 8 right factor two words at rows 2t, 2t + 8 and column g; of a 16 x 8 sum the numbers
// at rows g, g + 8 and columns 2t, 2t + 1. So the sums of two neighbouring products, rounded, are a left factor as they
// stand, and the transpose of an 8 x 8 block within the warp turns one role into the other.
#pragma once

#include <cstring>

#include "core/triplane_warp.h"

LICAG3D_CORE_BEGIN

constexpr int kTensorChannels = 32, kTensorHidden = 64;
constexpr int kTensorRow = kTensorChannels / 2 + 4;    // words of a row of channels; padded against bank conflicts
constexpr int kTensorTurned = kTensorHidden / 2 + 4;   // words of a row of hidden units
constexpr int kTensorGradient = kTensorChannels + 4;   // floats of a row of the gradient of the features

// Two numbers as bfloat16, the first in the low half; ties to even.
LICAG3D_HD uint32_t pack_bfloat16(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  uint32_t out = 0;
  for (int i = 0; i < 2; ++i) {
    const float value = i ? high : low;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t rounded =
        (bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    out |= rounded << 16 * i;
  }
  return out;
#endif
}

// Softplus and its slope from two operations of the special function unit each; absolute error below 3e-7, far below what
// rounding to bfloat16 brings.
LICAG3D_HD float softplus_quick(float x, float &slope) {
#if defined(__CUDA_ARCH__)
  const float e = __expf(-fabsf(x)), one = 1.0f + e, r = __fdividef(1.0f, one), log_one = __logf(one);
#else
  const float e = expf(-fabsf(x)), one = 1.0f + e, r = 1.0f / one, log_one = logf(one);
#endif
  slope = x < 0.0f ? e * r : r;
  return (x > 0.0f ? x : x < 0.0f ? 0.0f : x) + log_one;  // lets NaN through
}

// Shared by the warps of a block.
struct TensorWeights {
  alignas(16) uint32_t forward[kTensorHidden][kTensorRow];       // weight_1 (hidden, channels)
  alignas(16) uint32_t backward[kTensorChannels][kTensorTurned];  // its transpose
  float bias_1[kTensorHidden], weight_2[kTensorHidden], bias_2, unused[3];
};

// Of one warp; in shared memory.
struct TensorPacket {
  alignas(16) uint32_t features[kLanes32][kTensorRow];
  alignas(16) float gradient[kLanes32][kTensorGradient];  // of the features
  WarpCells cells;
  float field[kLanes32];   // softplus of the last sum
  float weight[kLanes32];  // in, backward: gradient of each field value
};

// weights: (hidden, channels), bias_1, weight_2, bias_2 padded with zeros to 64 and 32, as weight_floats counts them.
LICAG3D_HD void tensor_weights(const float *weights, TensorWeights &out, int thread, int threads) {
  for (int i = thread; i < kTensorHidden * kTensorChannels / 2; i += threads) {
    const int j = i / (kTensorChannels / 2), c = i % (kTensorChannels / 2);
    out.forward[j][c] = pack_bfloat16(weights[j * kTensorChannels + 2 * c], weights[j * kTensorChannels + 2 * c + 1]);
  }
  for (int i = thread; i < kTensorChannels * kTensorHidden / 2; i += threads) {
    const int c = i / (kTensorHidden / 2), j = i % (kTensorHidden / 2);
    out.backward[c][j] = pack_bfloat16(weights[2 * j * kTensorChannels + c], weights[(2 * j + 1) * kTensorChannels + c]);
  }
  const float *rest = weights + kTensorHidden * kTensorChannels;
  for (int j = thread; j < kTensorHidden; j += threads) out.bias_1[j] = rest[j], out.weight_2[j] = rest[kTensorHidden + j];
  if (thread == 0) out.bias_2 = rest[2 * kTensorHidden];
}

// Features of the warp's samples into the packet, rounded.
template <class Texel, class Warp>
LICAG3D_HD void tensor_gather(Warp &warp, const Texel *texels, int resolution, uint32_t active, TensorPacket &packet) {
  warp_gather<kTensorChannels>(warp, texels, resolution, packet.cells, active,
                               [&](int sample, int channel, const float *values) {
                                 LICAG3D_UNROLL
                                 for (int i = 0; i < ItemOf<Texel>::size; i += 2)
                                   packet.features[sample][(channel + i) / 2] = pack_bfloat16(values[i], values[i + 1]);
                               });
  warp.sync();
}

// The left factor of samples [16 tile, 16 tile + 16): all 32 channels, four words for each 16 of them.
template <class Warp>
LICAG3D_HD void tensor_features(Warp &warp, const TensorPacket &packet, int tile,
                                typename Warp::template Regs<uint32_t, 8> &a) {
  warp.each([&](int lane) {
    const int row = tile * 16 + lane / 4, t = lane % 4;
    uint32_t *word = a.at(lane);
    LICAG3D_UNROLL
    for (int k = 0; k < 2; ++k) {
      word[4 * k] = packet.features[row][8 * k + t];
      word[4 * k + 1] = packet.features[row + 8][8 * k + t];
      word[4 * k + 2] = packet.features[row][8 * k + t + 4];
      word[4 * k + 3] = packet.features[row + 8][8 * k + t + 4];
    }
  });
}

// The preactivations of hidden units [8 j, 8 j + 8).
template <class Warp>
LICAG3D_HD void tensor_units(Warp &warp, const TensorWeights &weights, const typename Warp::template Regs<uint32_t, 8> &a,
                             int j, typename Warp::template Regs<float, 4> &sum) {
  typename Warp::template Regs<uint32_t, 4> b;
  warp.each([&](int lane) {
    const int g = lane / 4, t = lane % 4;
    float *c = sum.at(lane);
    c[0] = c[2] = weights.bias_1[8 * j + 2 * t];
    c[1] = c[3] = weights.bias_1[8 * j + 2 * t + 1];
    LICAG3D_UNROLL
    for (int k = 0; k < 4; ++k) b.at(lane)[k] = weights.forward[8 * j + g][4 * k + t];
  });
  warp.mma(sum, 0, a, 0, b, 0);
  warp.mma(sum, 0, a, 4, b, 2);
}

// packet.field of all 32 samples.
template <class Warp>
LICAG3D_HD void tensor_decode(Warp &warp, const TensorWeights &weights, TensorPacket &packet) {
  for (int tile = 0; tile < 2; ++tile) {
    typename Warp::template Regs<uint32_t, 8> a;
    typename Warp::template Regs<float, 2> last;
    tensor_features(warp, packet, tile, a);
    warp.each([&](int lane) { last.at(lane)[0] = last.at(lane)[1] = 0.0f; });
    LICAG3D_UNROLL
    for (int j = 0; j < kTensorHidden / 8; ++j) {
      typename Warp::template Regs<float, 4> sum;
      tensor_units(warp, weights, a, j, sum);
      warp.each([&](int lane) {
        const int column = 8 * j + lane % 4 * 2;
        const float *c = sum.at(lane), w0 = weights.weight_2[column], w1 = weights.weight_2[column + 1];
        float slope;
        last.at(lane)[0] += w0 * softplus_quick(c[0], slope) + w1 * softplus_quick(c[1], slope);
        last.at(lane)[1] += w0 * softplus_quick(c[2], slope) + w1 * softplus_quick(c[3], slope);
      });
    }
    warp.template add_groups<4>(last);
    warp.each([&](int lane) {
      if (lane % 4 != 0) return;
      float slope;
      LICAG3D_UNROLL
      for (int i = 0; i < 2; ++i)
        packet.field[tile * 16 + lane / 4 + 8 * i] = softplus_quick(last.at(lane)[i] + weights.bias_2, slope);
    });
  }
  warp.sync();
}

// What a warp sums over all its samples: the gradient of weight_1 as 4 x 4 blocks of 16 units by 8 channels, and those of
// bias_1, weight_2 (units 8 j + 2t, 8 j + 2t + 1) and bias_2.
template <class Warp>
struct TensorSums {
  typename Warp::template Regs<float, 64> weight_1;
  typename Warp::template Regs<float, 16> bias_1, weight_2;
  typename Warp::template Regs<float, 1> bias_2;

  LICAG3D_HD void clear(Warp &warp) {
    warp.each([&](int lane) {
      LICAG3D_UNROLL
      for (int i = 0; i < 64; ++i) weight_1.at(lane)[i] = 0.0f;
      LICAG3D_UNROLL
      for (int i = 0; i < 16; ++i) bias_1.at(lane)[i] = weight_2.at(lane)[i] = 0.0f;
      bias_2.at(lane)[0] = 0.0f;
    });
  }
};

// Adds to the gradient of weight_1 what 16 samples give: `a` their features, `unit` the gradient of their preactivations.
template <class Warp>
LICAG3D_HD void tensor_outer(Warp &warp, const typename Warp::template Regs<uint32_t, 8> &a,
                             const typename Warp::template Regs<uint32_t, 16> &unit, TensorSums<Warp> &sums) {
  typename Warp::template Regs<uint32_t, 8> turned;  // the features as a right factor
  LICAG3D_UNROLL
  for (int i = 0; i < 8; ++i) warp.transpose(turned, i, a, i);
  LICAG3D_UNROLL
  for (int m = 0; m < kTensorHidden / 16; ++m) {
    typename Warp::template Regs<uint32_t, 4> left;
    warp.transpose(left, 0, unit, 4 * m), warp.transpose(left, 1, unit, 4 * m + 2);
    warp.transpose(left, 2, unit, 4 * m + 1), warp.transpose(left, 3, unit, 4 * m + 3);
    LICAG3D_UNROLL
    for (int c = 0; c < kTensorChannels / 8; ++c) warp.mma(sums.weight_1, 4 * (4 * m + c), left, 0, turned, 2 * c);
  }
}

// packet.field and, from packet.weight, packet.gradient; with kWeights also the sums.
template <bool kWeights, class Warp>
LICAG3D_HD void tensor_decode_backward(Warp &warp, const TensorWeights &weights, TensorPacket &packet,
                                       TensorSums<Warp> &sums) {
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
  for (int tile = 0; tile < 2; ++tile) {
    typename Warp::template Regs<uint32_t, 8> a;
    typename Warp::template Regs<uint32_t, 16> unit;  // gradient of the preactivations, two units a word
    typename Warp::template Regs<float, 32> hidden, slope;
    typename Warp::template Regs<float, 2> last;
    tensor_features(warp, packet, tile, a);
    warp.each([&](int lane) { last.at(lane)[0] = last.at(lane)[1] = 0.0f; });
    LICAG3D_UNROLL
    for (int j = 0; j < kTensorHidden / 8; ++j) {
      typename Warp::template Regs<float, 4> sum;
      tensor_units(warp, weights, a, j, sum);
      warp.each([&](int lane) {
        LICAG3D_UNROLL
        for (int i = 0; i < 4; ++i) {
          float &h = hidden.at(lane)[4 * j + i], weight = weights.weight_2[8 * j + lane % 4 * 2 + i % 2];
          h = softplus_quick(sum.at(lane)[i], slope.at(lane)[4 * j + i]);
          last.at(lane)[i / 2] += weight * h;
        }
      });
    }
    warp.template add_groups<4>(last);
    warp.each([&](int lane) {
      const int t = lane % 4;
      LICAG3D_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int sample = tile * 16 + lane / 4 + 8 * i;
        float of_last;
        const float field = softplus_quick(last.at(lane)[i] + weights.bias_2, of_last);
        if (t == 0) packet.field[sample] = field;
        last.at(lane)[i] = packet.weight[sample] * of_last;
      }
      const float dz[2] = {last.at(lane)[0], last.at(lane)[1]};
      if (kWeights && t == 0) sums.bias_2.at(lane)[0] += dz[0] + dz[1];
      LICAG3D_UNROLL
      for (int j = 0; j < kTensorHidden / 8; ++j) {
        float dh[4];
        LICAG3D_UNROLL
        for (int i = 0; i < 4; ++i)
          dh[i] = dz[i / 2] * weights.weight_2[8 * j + 2 * t + i % 2] * slope.at(lane)[4 * j + i];
        if (kWeights) {
          LICAG3D_UNROLL
          for (int i = 0; i < 2; ++i) {
            sums.bias_1.at(lane)[2 * j + i] += dh[i] + dh[i + 2];
            sums.weight_2.at(lane)[2 * j + i] +=
                dz[0] * hidden.at(lane)[4 * j + i] + dz[1] * hidden.at(lane)[4 * j + i + 2];
          }
        }
        unit.at(lane)[2 * j] = pack_bfloat16(dh[0], dh[1]);
        unit.at(lane)[2 * j + 1] = pack_bfloat16(dh[2], dh[3]);
      }
    });
    LICAG3D_UNROLL
    for (int c = 0; c < kTensorChannels / 8; ++c) {
      typename Warp::template Regs<float, 4> sum;
      warp.each([&](int lane) {
        LICAG3D_UNROLL
        for (int i = 0; i < 4; ++i) sum.at(lane)[i] = 0.0f;
      });
      LICAG3D_UNROLL
      for (int k = 0; k < kTensorHidden / 16; ++k) {
        typename Warp::template Regs<uint32_t, 2> b;
        warp.each([&](int lane) {
          b.at(lane)[0] = weights.backward[8 * c + lane / 4][8 * k + lane % 4];
          b.at(lane)[1] = weights.backward[8 * c + lane / 4][8 * k + lane % 4 + 4];
        });
        warp.mma(sum, 0, unit, 4 * k, b, 0);
      }
      warp.each([&](int lane) {
        float *row = &packet.gradient[tile * 16 + lane / 4][8 * c + lane % 4 * 2];
        row[0] = sum.at(lane)[0], row[1] = sum.at(lane)[1];
        row[8 * kTensorGradient] = sum.at(lane)[2], row[8 * kTensorGradient + 1] = sum.at(lane)[3];
      });
    }
    if (kWeights) tensor_outer(warp, a, unit, sums);
  }
  warp.sync();
}

// Adds the sums of a warp to its own place, laid out as weight_floats counts.
template <class Warp>
LICAG3D_HD void tensor_store(Warp &warp, TensorSums<Warp> &sums, float *out) {
  warp.add_columns(sums.bias_1), warp.add_columns(sums.weight_2), warp.add_columns(sums.bias_2);
  warp.each([&](int lane) {
    const int g = lane / 4, t = lane % 4;
    LICAG3D_UNROLL
    for (int i = 0; i < 64; ++i) {
      const int unit = i / 16 * 16 + g + (i % 4 / 2) * 8, channel = i / 4 % 4 * 8 + 2 * t + i % 2;
      out[unit * kTensorChannels + channel] += sums.weight_1.at(lane)[i];
    }
    if (g != 0) return;
    float *bias_1 = out + kTensorHidden * kTensorChannels, *weight_2 = bias_1 + kTensorHidden;
    LICAG3D_UNROLL
    for (int i = 0; i < 16; ++i) {
      bias_1[i / 2 * 8 + 2 * t + i % 2] += sums.bias_1.at(lane)[i];
      weight_2[i / 2 * 8 + 2 * t + i % 2] += sums.weight_2.at(lane)[i];
    }
    if (t == 0) weight_2[kTensorHidden] += sums.bias_2.at(lane)[0];
  });
}

LICAG3D_CORE_END
