// SPDX-License-Identifier: Apache-2.0
// Gradients of planes and decoder of the tri-plane operators on the CPU, the same bits on any number of threads.
//
// The backward pass recomputes the forward one in two phases, a few blocks of rows at a time. First every block is
// decoded and leaves the gradients of what its rows gathered in a record. Then the threads share out slices of the
// plane gradient, 16 channels of one plane each, and every slice adds the records in the order of the blocks. So no two
// threads write to one place, and no thread needs a gradient of its own.
#pragma once

#include <cstring>

#include "cpu/triplane_field.h"

namespace licag3d {

constexpr int64_t kRecordBytes = 64 << 20;  // records, at most, unless a single block needs more

class Accumulator {
 public:
  Accumulator(const licag3d_run &run, const licag3d_triplane &field, const licag3d_triplane_gradients &gradients,
              const Field &planes, int64_t blocks)
      : run_(run),
        field_(field),
        gradients_(gradients),
        planes_(planes),
        item_(planes.item()),
        want_weights_(gradients.weight_1 != nullptr),
        want_gathered_(gradients.planes != nullptr || (want_weights_ && item_.folded)),
        in_place_(!item_.folded && planes.options().texel_stride > 0),
        small_(2LL * item_.hp + 16),
        product_(static_cast<int64_t>(item_.cp) * item_.hp),
        weights_size_(want_weights_ ? small_ + (item_.folded ? 0 : product_) : 0),
        row_size_(want_gathered_ ? 6 + item_.width : 0),
        record_size_((kTriplaneBlock * row_size_ + weights_size_ + 15) / 16 * 16),
        records_count_(std::max<int64_t>(1, std::min({blocks, int64_t{4} * thread_count(run),
                                                      kRecordBytes / std::max<int64_t>(record_size_ * 4, 1)}))),
        used_(records_count_),
        records_(records_count_ * record_size_),
        slices_(want_gathered_ && !in_place_ ? 3 * texel_count() * item_.width : 0),
        sums_(want_weights_ ? small_ + product_ : 0) {}

  int64_t chunk() const { return records_count_; }

  TriplaneRecord record(int64_t block) const {
    float *at = records_.get() + block % records_count_ * record_size_;
    TriplaneRecord record = {};
    record.samples = kTriplaneBlock;
    record.used = &used_[block % records_count_];
    record.want_gathered = want_gathered_;
    record.want_weights = want_weights_;
    if (want_gathered_) {
      record.gathered = at;  // first: rows of 16 floats stay aligned
      record.fraction = at + static_cast<int64_t>(kTriplaneBlock) * item_.width;
      record.texel = reinterpret_cast<int32_t *>(record.fraction + 3 * kTriplaneBlock);
    }
    record.weights = at + kTriplaneBlock * row_size_;
    return record;
  }

  void begin_item(int64_t batch) {
    slice_list_.clear();
    if (!want_gathered_) return;
    const int64_t texels = texel_count();
    for (int64_t p = 0; p < 3; ++p)
      for (int64_t s = 0; s < item_.width / 16; ++s) {
        const licag3d_triplane_options &layout = planes_.options();
        slice_list_.push_back(in_place_ ? TriplaneSlice{gradients_.planes + batch * layout.batch_stride +
                                                            p * layout.plane_stride + s * 16,
                                                        layout.texel_stride}
                                        : TriplaneSlice{slices_.get() + (p * item_.width / 16 + s) * texels * 16, 16});
      }
    planes_.for_texels([&](int64_t p, int64_t begin, int64_t end) {
      for (int64_t s = 0; s < item_.width / 16; ++s) {
        const TriplaneSlice &slice = slice_list_[p * item_.width / 16 + s];
        if (slice.texel_stride == 16)
          std::memset(slice.base + begin * 16, 0, (end - begin) * 64);
        else
          for (int64_t t = begin; t < end; ++t) std::memset(slice.base + t * slice.texel_stride, 0, 64);
      }
    });
  }

  // Second phase for blocks [begin, end), at most chunk() of them.
  void add(int64_t begin, int64_t end) {
    const auto scatter = LICAG3D_SELECT_ISA(triplane_scatter);
    const int64_t per_plane = item_.width / 16, slices = static_cast<int64_t>(slice_list_.size());
    parallel_for(slices + (want_weights_ ? 1 : 0), 1, run_.threads, [&](int64_t from, int64_t to) {
      for (int64_t unit = from; unit < to; ++unit)
        for (int64_t block = begin; block < end; ++block) {
          const TriplaneRecord part = record(block);
          if (unit < slices)
            scatter(part, field_.resolution, static_cast<int>(unit / per_plane), static_cast<int>(unit % per_plane),
                    slice_list_[unit]);
          else
            for (int64_t i = 0; i < weights_size_; ++i) sums_[i] += part.weights[i];
        }
    });
  }

  // Gradient of the planes of one item in the layout of the planes, and what folding left of that of weight_1.
  void end_item(int64_t batch) {
    if (!want_gathered_ || in_place_) return;
    const auto unpack = LICAG3D_SELECT_ISA(triplane_unpack);
    const int64_t texels = texel_count(), blocks = (texels + kTriplaneTexels - 1) / kTriplaneTexels;
    const int64_t groups = std::min<int64_t>(blocks, 16), stride = planes_.options().texel_stride;
    const bool weights = want_weights_ && item_.folded;
    // Each group of texels sums in a place of its own, whichever thread takes it.
    Floats partial(weights ? 3 * groups * product_ : 0);
    parallel_for(3 * groups, 1, run_.threads, [&](int64_t from, int64_t to) {
      for (int64_t unit = from; unit < to; ++unit) {
        const int64_t p = unit / groups, group = unit % groups;
        float *sum = weights ? partial.get() + unit * product_ : nullptr;
        if (weights) std::fill(sum, sum + product_, 0.0f);
        float *out = gradients_.planes == nullptr ? nullptr
                     : stride > 0 ? gradients_.planes + batch * planes_.options().batch_stride +
                                        p * planes_.options().plane_stride
                                  : gradients_.planes + (3 * batch + p) * field_.channels * texels;
        for (int64_t block = group * blocks / groups; block < (group + 1) * blocks / groups; ++block)
          unpack(item_, &slice_list_[p * item_.width / 16], planes_.plane(batch, p), stride, block * kTriplaneTexels,
                 std::min((block + 1) * kTriplaneTexels, texels), out, sum);
      }
    });
    for (int64_t unit = 0; weights && unit < 3 * groups; ++unit)
      for (int64_t i = 0; i < product_; ++i) sums_[small_ + i] += partial.get()[unit * product_ + i];
  }

  void finish_weights() const {
    if (!want_weights_) return;
    const int hp = item_.hp;
    const double *bias_1 = sums_.data(), *weight_2 = bias_1 + hp, *bias_2 = weight_2 + hp, *weight_1t = bias_2 + 16;
    for (int j = 0; j < field_.hidden; ++j) {
      for (int c = 0; c < field_.channels; ++c)
        gradients_.weight_1[j * field_.channels + c] = static_cast<float>(weight_1t[c * hp + j] / 3);
      gradients_.bias_1[j] = static_cast<float>(bias_1[j]);
      gradients_.weight_2[j] = static_cast<float>(weight_2[j]);
    }
    double sum = 0;
    for (int i = 0; i < 16; ++i) sum += bias_2[i];
    gradients_.bias_2[0] = static_cast<float>(sum);
  }

 private:
  int64_t texel_count() const { return static_cast<int64_t>(field_.resolution) * field_.resolution; }

  const licag3d_run &run_;
  const licag3d_triplane &field_;
  const licag3d_triplane_gradients &gradients_;
  const Field &planes_;
  const TriplaneItem &item_;
  bool want_weights_, want_gathered_, in_place_;
  int64_t small_, product_, weights_size_, row_size_, record_size_, records_count_;
  mutable std::vector<int64_t> used_;
  Floats records_, slices_;
  std::vector<TriplaneSlice> slice_list_;
  std::vector<double> sums_;
};

}  // namespace licag3d
