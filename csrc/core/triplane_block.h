// SPDX-License-Identifier: Apache-2.0
// The float32 decoder of one CUDA block, cut at its barriers: every thread holds one sample whose features lie in shared
// memory, and the gradients of the decoder weights are summed over the block by staging 16 hidden units at a time, each
// output owned by one thread. Plain functions of a thread number, so that a host test can run a block step by step
// (tests/test_triplane_warp.cpp).
#pragma once

#include "core/triplane_warp.h"

LICAG3D_CORE_BEGIN

constexpr int kBlockThreads = 128;
constexpr int kStage = 16;  // hidden units per stage

// Shared memory of a block. Rows are padded so that threads reading one column meet different banks. The backward pass
// takes all of it, the forward pass what stands before `unit`.
template <int kChannels>
struct BlockShared {
  static constexpr int kRow = kChannels + 4;
  alignas(16) float features[kBlockThreads][kRow];  // later their gradient
  WarpCells cells[kBlockThreads / kLanes32];
  float unit[kBlockThreads][kStage + 1];    // gradient of the preactivations
  float weight[kBlockThreads][kStage + 1];  // share in the gradient of weight_2
  float dz[kBlockThreads];
};

// Gradients of the padded decoder weights: weight_1 (hidden, channels), bias_1, weight_2 (hidden each), bias_2.
LICAG3D_HD int64_t weight_floats(int channels, int hidden) {
  return static_cast<int64_t>(hidden) * (channels + 2) + 16;
}

template <int kChannels>
struct ThreadSample {
  float features[kChannels], features_grad[kChannels];
  float field, dz;
};

template <int kChannels>
LICAG3D_HD void block_features(const BlockShared<kChannels> &shared, float *features, int thread) {
  LICAG3D_UNROLL
  for (int c = 0; c < kChannels; c += 4) load_item(&shared.features[thread][c], features + c);
}

// Decodes the sample; weight is the gradient of its field value. An idle thread (active = false) takes part in the
// barriers with nothing to add.
template <int kChannels>
LICAG3D_HD void block_decode(const PointField &field, bool active, float weight, ThreadSample<kChannels> &sample,
                             BlockShared<kChannels> &shared, int thread) {
  block_features(shared, sample.features, thread);
  LICAG3D_UNROLL
  for (int c = 0; c < kChannels; ++c) sample.features_grad[c] = 0.0f;
  sample.field = sample.dz = 0.0f;
  if (active) {
    float slope;
    sample.field = softplus_slope_one(decode_point<kChannels>(field, sample.features), slope);
    sample.dz = weight * slope;
  }
  shared.dz[thread] = sample.dz;
}

// Units [first, first + kStage) of this thread's sample; with kWeights also what block_reduce sums.
template <int kChannels, bool kWeights>
LICAG3D_HD void block_stage(const PointField &field, bool active, int first, ThreadSample<kChannels> &sample,
                            BlockShared<kChannels> &shared, int thread) {
  for (int i = 0; i < kStage; ++i) {
    float dh = 0.0f, weight = 0.0f;
    if (active)
      dh = decode_point_backward<kChannels>(field, first + i, sample.features, sample.dz, sample.features_grad, weight);
    if (kWeights) {
      shared.unit[thread][i] = dh;
      shared.weight[thread][i] = weight;
    }
  }
}

// The gradient of the features takes their place, once no thread reads them any more.
template <int kChannels>
LICAG3D_HD void block_turn(const ThreadSample<kChannels> &sample, BlockShared<kChannels> &shared, int thread) {
  LICAG3D_UNROLL
  for (int c = 0; c < kChannels; ++c) shared.features[thread][c] = sample.features_grad[c];
}

// After a barrier: this thread's share of the sums over the block, added to the block's own weight gradients.
template <int kChannels>
LICAG3D_HD void block_reduce(const BlockShared<kChannels> &shared, int hidden, int first, float *gradient, int thread) {
  constexpr int kGroups = kChannels / 4;
  for (int o = thread; o < kStage * kGroups; o += kBlockThreads) {
    const int i = o / kGroups, c = o % kGroups * 4;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    LICAG3D_UNROLL_4
    for (int s = 0; s < kBlockThreads; ++s) {
      const Float4 f = load4(&shared.features[s][c]);
      const float dh = shared.unit[s][i];
      for (int k = 0; k < 4; ++k) sum[k] += dh * f.v[k];
    }
    float *out = gradient + static_cast<int64_t>(first + i) * kChannels + c;
    for (int k = 0; k < 4; ++k) out[k] += sum[k];
  }
  // The last warp, idle above where there are few channels, takes the vectors.
  float *bias_1 = gradient + static_cast<int64_t>(hidden) * kChannels, *weight_2 = bias_1 + hidden,
        *bias_2 = weight_2 + hidden;
  const int k = thread - (kBlockThreads - 2 * kStage);
  if (k < 0) return;
  float sum = 0.0f;
  LICAG3D_UNROLL_4
  for (int s = 0; s < kBlockThreads; ++s) sum += k < kStage ? shared.unit[s][k] : shared.weight[s][k - kStage];
  (k < kStage ? bias_1 + first + k : weight_2 + first + k - kStage)[0] += sum;
  if (first == 0 && k == 0) {
    float total = 0.0f;
    LICAG3D_UNROLL_4
    for (int s = 0; s < kBlockThreads; ++s) total += shared.dz[s];
    bias_2[0] += total;
  }
}

LICAG3D_CORE_END
