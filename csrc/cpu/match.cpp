// SPDX-License-Identifier: Apache-2.0
// Threads and entry points of the centreline matching.
#include "core/match.h"
#include "core/paths.h"

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

namespace {

// Whether every piece has points, in order, and all of them lie in the arrays.
bool well_formed(const licag3d_path_costs &costs) {
  if (costs.points < 0 || costs.pieces < 0 || costs.states < 1) return false;
  int64_t at = 0;
  for (int64_t p = 0; p < costs.pieces; ++p) {
    if (costs.start[p] != at || costs.start[p + 1] <= at) return false;
    at = costs.start[p + 1];
  }
  return at == costs.points;
}

licag3d::PathCosts piece_costs(const licag3d_path_costs &costs, int64_t piece) {
  const int64_t begin = costs.start[piece], states = costs.states;
  return {costs.start[piece + 1] - begin, states, costs.unary + begin * states, costs.pair + begin * states * states};
}

}  // namespace

extern "C" int32_t licag3d_path_marginals(const licag3d_run *run, const licag3d_path_costs *costs, double *margin) {
  if (!well_formed(*costs)) return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the pieces are malformed");
  licag3d::parallel_for(costs->pieces, 4, run->threads, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch;
    for (int64_t p = begin; p < end; ++p)
      licag3d::path_marginals(piece_costs(*costs, p), scratch, margin + costs->start[p] * costs->states);
  });
  return LICAG3D_OK;
}

extern "C" int32_t licag3d_cheapest_paths(const licag3d_run *run, const licag3d_path_costs *costs, int64_t *state,
                                          double *cost) {
  if (!well_formed(*costs)) return licag3d::fail(LICAG3D_BAD_ARGUMENT, "the pieces are malformed");
  licag3d::parallel_for(costs->pieces, 4, run->threads, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch;
    std::vector<int64_t> back;
    for (int64_t p = begin; p < end; ++p)
      cost[p] = licag3d::cheapest_path(piece_costs(*costs, p), scratch, back, state + costs->start[p]);
  });
  return LICAG3D_OK;
}
