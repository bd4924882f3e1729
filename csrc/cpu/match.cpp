// SPDX-License-Identifier: Apache-2.0
// Threads and entry point of the centreline matching.
#include "core/match.h"

#include "cpu/error.h"
#include "cpu/threads.h"

extern "C" int32_t licag3d_match_cost(const licag3d_run *run, const licag3d_chains *a, const licag3d_chains *b,
                                      const licag3d_match_prices *prices, int64_t count, int32_t swapped,
                                      const double *theta_a, const double *phi_a, const double *theta_b,
                                      const double *phi_b, const double *baseline_mm, const double *turn, double *cost,
                                      double *matched_mm) {
  if (count < 0 || a->points < 0 || b->points < 0 || !(prices->tolerance_mm > 0) || !(prices->reach_mm > 0))
    return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the chains or the prices are malformed");
  std::vector<int64_t> piece_of(b->points);
  for (int64_t p = 0; p < b->pieces; ++p)
    for (int64_t j = b->start[p]; j < b->start[p + 1]; ++j) piece_of[j] = p;
  licag3d::parallel_for(count, 1, run->threads, [&](int64_t begin, int64_t end) {
    licag3d::MatchScratch scratch;
    for (int64_t m = begin; m < end; ++m) {
      const licag3d::MatchView own{a, theta_a + m * a->points, phi_a + m * a->points};
      const licag3d::MatchView other{b, theta_b + m * b->points, phi_b + m * b->points};
      licag3d::match_cost_one(own, other, *prices, swapped != 0, baseline_mm[m], turn, piece_of, scratch, cost + m,
                              matched_mm + m);
    }
  });
  return LICAG3D_OK;
}
