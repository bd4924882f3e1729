// SPDX-License-Identifier: Apache-2.0
// Memory of the tri-plane operators on the CPU: padded weights, packed planes, occupancy, scratch of the threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/isa.h"
#include "cpu/threads.h"
#include "cpu/triplane_tasks.h"

namespace licag3d {

constexpr int64_t kFoldedBytes = 64 << 20;  // folded texels and their gradient, at most

inline int thread_count(const licag3d_run &run) {
  return run.threads > 0 ? run.threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// 64-byte aligned floats, not set; large ones on large pages where the system has them: fewer faults, fewer misses.
class Floats {
 public:
  explicit Floats(int64_t count) {
    constexpr size_t kPage = 2 << 20;
    const size_t least = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(float);
    const size_t align = least >= 2 * kPage ? kPage : 64;
    const size_t bytes = (least + 63) / 64 * 64;
    void *p = nullptr;
    if (posix_memalign(&p, align, bytes) != 0) throw std::bad_alloc();
    memory_.reset(static_cast<float *>(p));
    if (align == kPage) prefer_large_pages(p, bytes);
  }
  float *get() const { return memory_.get(); }

  static void prefer_large_pages(void *p, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = 2 << 20;
    const uintptr_t from = (reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage,
                    to = (reinterpret_cast<uintptr_t>(p) + bytes) / kPage * kPage;
    if (to > from) madvise(reinterpret_cast<void *>(from), to - from, MADV_HUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
  }

 private:
  struct Free {
    void operator()(float *p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
};

// Scratch of every thread that may run a block, handed out by an atomic ticket: a block must not allocate, it cannot
// throw.
class ScratchPool {
 public:
  ScratchPool(int threads, int64_t floats)
      : floats_((floats + 15) / 16 * 16), memory_(threads * floats_), busy_(threads) {
    for (auto &flag : busy_) flag.store(false);
  }
  int take() {
    for (;;)
      for (size_t i = 0; i < busy_.size(); ++i)
        if (!busy_[i].exchange(true, std::memory_order_acquire)) return static_cast<int>(i);
  }
  void give(int i) { busy_[i].store(false, std::memory_order_release); }
  float *at(int i) const { return memory_.get() + i * floats_; }

 private:
  int64_t floats_;
  Floats memory_;
  std::vector<std::atomic<bool>> busy_;
};

// Nearest bfloat16, ties to even; what is not finite stays so.
inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// Whether folding the first layer into the planes is less work than a product per row. The weights of the terms are
// vector operations; the gradient that scatters wider texels is counted with the forward pass, so that both passes of
// one call choose alike.
inline bool worth_folding(const licag3d_triplane &field, int cp, int hp, double rows) {
  const double texels = 3.0 * field.resolution * field.resolution;
  if (2 * texels * hp * sizeof(float) > kFoldedBytes) return false;
  const double product = static_cast<double>(cp) * hp / 32, wider = 12.0 * (hp - cp) / 16 * 2;
  return rows * (3 * product - wider) > texels * (3 * product + 2 * hp / 4.0);
}

// Share of the cells that are not empty, 1 without cells.
inline double occupied_share(const licag3d_triplane &field, const licag3d_triplane_options &options) {
  if (options.occupancy == nullptr) return 1;
  const int64_t count = int64_t{options.cells} * options.cells * options.cells *
                        (options.occupancy_per_item ? std::max<int64_t>(field.batch, 1) : 1);
  int64_t occupied = 0;
  for (int64_t i = 0; i < (field.batch > 0 ? count : 0); ++i) occupied += options.occupancy[i] != 0;
  return static_cast<double>(occupied) / static_cast<double>(count);
}

// Planes, weights and occupancy of one item of the batch at a time.
class Field {
 public:
  Field(const licag3d_run &run, const licag3d_triplane &field, const licag3d_triplane_options &options, int64_t rows)
      : run_(run),
        field_(field),
        options_(options),
        cp_((field.channels + 15) / 16 * 16),
        hp_((field.hidden + 15) / 16 * 16),
        tiles_(options.precision == 1 && cp_ % 32 == 0 && hp_ % 32 == 0 && tiles_ready()),
        folded_(!tiles_ && worth_folding(field, cp_, hp_, rows * occupied_share(field, options))),
        in_place_(!folded_ && options.texel_stride > 0),
        texels_(in_place_ ? 0 : 3 * texel_count() * (folded_ ? hp_ : cp_)),
        weights_(2LL * cp_ * hp_ + 2 * hp_ + (tiles_ ? 1LL * cp_ * hp_ : 0)) {
    float *weight_1 = weights_.get(), *weight_1t = weight_1 + cp_ * hp_, *bias_1 = weight_1t + cp_ * hp_,
          *weight_2 = bias_1 + hp_;
    std::fill(weight_1, weight_2 + hp_, 0.0f);
    for (int j = 0; j < field.hidden; ++j) {
      for (int c = 0; c < field.channels; ++c)
        weight_1[j * cp_ + c] = weight_1t[c * hp_ + j] = field.weight_1[j * field.channels + c] / 3;
      bias_1[j] = field.bias_1[j];
      weight_2[j] = field.weight_2[j];
    }
    const int width = folded_ ? hp_ : cp_;
    const int64_t texel_stride = in_place_ ? options.texel_stride : width;
    item_ = {&field_,  texels_.get(), in_place_ ? options.plane_stride : texel_count() * width,
             texel_stride, weight_1, weight_1t, bias_1, weight_2, field.bias_2[0], field.channels, cp_, field.hidden,
             hp_, field.resolution, width, folded_, tiles_, nullptr, nullptr};
    if (!tiles_) return;
    uint16_t *narrow_1 = reinterpret_cast<uint16_t *>(weight_2 + hp_), *narrow_1t = narrow_1 + cp_ * hp_;
    for (int j = 0; j < hp_; ++j)
      for (int c = 0; c < cp_; ++c) {
        const uint16_t weight = to_bfloat16(weight_1[j * cp_ + c]);
        narrow_1[(j / 2 * cp_ + c) * 2 + j % 2] = narrow_1t[(c / 2 * hp_ + j) * 2 + c % 2] = weight;
      }
    item_.narrow_1 = narrow_1, item_.narrow_1t = narrow_1t;
  }

  const TriplaneItem &select(int64_t batch) {
    if (in_place_) {
      item_.texels = static_cast<const float *>(plane(batch, 0));
    } else {
      const auto pack = LICAG3D_SELECT_ISA(triplane_pack);
      for_texels([&](int64_t p, int64_t begin, int64_t end) {
        pack(item_, plane(batch, p), options_.texel_stride, begin, end,
             texels_.get() + p * item_.plane_stride + begin * item_.width);
      });
    }
    if (options_.occupancy != nullptr && (batch == 0 || options_.occupancy_per_item)) measure_cells(batch);
    return item_;
  }

  // body(plane, begin, end) on blocks of texels.
  template <class Body>
  void for_texels(Body &&body) const {
    const int64_t blocks = (texel_count() + kTriplaneTexels - 1) / kTriplaneTexels;
    parallel_for(3 * blocks, 16, run_.threads, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t begin = i % blocks * kTriplaneTexels;
        body(i / blocks, begin, std::min(begin + kTriplaneTexels, texel_count()));
      }
    });
  }

  const void *plane(int64_t batch, int64_t p) const {
    if (options_.texel_stride > 0)
      return static_cast<const float *>(field_.planes) + batch * options_.batch_stride + p * options_.plane_stride;
    return static_cast<const char *>(field_.planes) +
           (3 * batch + p) * field_.channels * texel_count() * (field_.planes_are_half ? 2 : 4);
  }

  int64_t texel_count() const { return static_cast<int64_t>(field_.resolution) * field_.resolution; }
  const TriplaneItem &item() const { return item_; }
  TriplaneCells cells() const { return {options_.occupancy != nullptr ? distance_.data() : nullptr, options_.cells}; }
  const licag3d_triplane_options &options() const { return options_; }

 private:
  void measure_cells(int64_t batch) {
    const int n = options_.cells;
    const int64_t count = static_cast<int64_t>(n) * n * n;
    const uint8_t *given = options_.occupancy + (options_.occupancy_per_item ? batch * count : 0);
    distance_.resize(count);
    std::vector<uint8_t> other(count);
    for (int64_t i = 0; i < count; ++i) other[i] = given[i] != 0 ? 0 : kTriplaneReach;
    const auto reach = LICAG3D_SELECT_ISA(triplane_reach);
    uint8_t *in = other.data(), *out = distance_.data();
    for (int axis = 0; axis < 3; ++axis, std::swap(in, out))
      parallel_for(n, 1, run_.threads, [&](int64_t from, int64_t to) {
        for (int64_t slab = from; slab < to; ++slab) reach(in, out, n, axis, static_cast<int>(slab));
      });
  }

  const licag3d_run &run_;
  const licag3d_triplane &field_;
  const licag3d_triplane_options &options_;
  int cp_, hp_;
  bool tiles_, folded_, in_place_;
  Floats texels_, weights_;
  std::vector<uint8_t> distance_;
  TriplaneItem item_;
};

}  // namespace licag3d
