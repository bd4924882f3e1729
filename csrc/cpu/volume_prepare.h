// SPDX-License-Identifier: Apache-2.0
// What a volume is given before rays are sent through it.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/volume_tasks.h"

namespace licag3d {

bool usable_grid(const licag3d_grid &grid);

// Memory that asks for large pages: touching a fresh buffer of the size of a volume otherwise costs more than filling it.
struct FreeBuffer {
  void operator()(void *memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, FreeBuffer>;
Buffer large_buffer(int64_t bytes);  // NULL where there is no memory for it

// Empty bricks and the turned copy, for one volume of a batch after another, where the number of rays makes them pay.
// Without memory for them everything works all the same.
class PreparedVolume {
 public:
  PreparedVolume(const licag3d_run &run, const licag3d_grid &grid, int64_t rays, int64_t rays_along_x);
  // Sets task.volume, task.turned and task.bricks, which are good until the next call.
  void set(const void *volume, ProjectTask &task);

 private:
  const licag3d_run run_;
  const licag3d_grid grid_;
  std::unique_ptr<uint8_t[]> full_;
  Bricks bricks_ = {};
  Buffer turned_;
};

}  // namespace licag3d
