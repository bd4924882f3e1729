// SPDX-License-Identifier: Apache-2.0
// Centreline matching: the cost of the best paths of one view's centreline pieces through another view, and paths on
// given costs.
#ifndef LICAG3D_MATCH_H
#define LICAG3D_MATCH_H

#include "licag3d.h"

#ifdef __cplusplus
extern "C" {
#endif

// Centreline pieces of one view: piece p owns points start[p] .. start[p + 1] - 1. Lengths in mm at the isocentre.
typedef struct licag3d_chains {
  int64_t points;
  int64_t pieces;
  const int64_t *start;     // pieces + 1
  const double *step_mm;    // from the previous point of the piece
  const double *weight_mm;  // length a point stands for
  const double *log_radius; // log of the half width in mm
} licag3d_chains;

typedef struct licag3d_match_prices {
  double none;  // per mm without a match
  double jump;  // per mm of 3D step beyond slack * step
  double jump_cap_mm;
  double slack;
  double gap;  // entering or leaving the unmatched state
  double calibre;
  double calibre_cap;
  double tolerance_mm;
  double reach_mm;  // turns plane angles into mm
  double flat;      // slope below which a vessel counts as running along the epipolar line
} licag3d_match_prices;

// Cost of the best paths of every piece of view a through view b, for `count` candidate cameras.
// theta/phi: (count, points) epipolar plane and ray angles, radians; baseline_mm (count); turn (pieces_b, pieces_b).
// swapped: view a is the second view of the baseline. Writes cost (count) and matched_mm (count).
LICAG3D_API int32_t licag3d_match_cost(const licag3d_run *run, const licag3d_chains *a, const licag3d_chains *b,
                                       const licag3d_match_prices *prices, int64_t count, int32_t swapped,
                                       const double *theta_a, const double *phi_a, const double *theta_b,
                                       const double *phi_b, const double *baseline_mm, const double *turn, double *cost,
                                       double *matched_mm);

// Pieces of points with costs: piece p owns points start[p] .. start[p + 1] - 1. unary (points, states); pair (points,
// states, states) from the state of the point before to the own one, not read for the first point of a piece.
typedef struct licag3d_path_costs {
  int64_t points;
  int64_t pieces;
  int64_t states;
  const int64_t *start;  // pieces + 1
  const double *unary;
  const double *pair;
} licag3d_path_costs;

// margin (points, states): cheapest cost of a whole path of the piece that goes through every state.
LICAG3D_API int32_t licag3d_path_marginals(const licag3d_run *run, const licag3d_path_costs *costs, double *margin);
// state (points): the cheapest path of every piece; cost (pieces): what it costs.
LICAG3D_API int32_t licag3d_cheapest_paths(const licag3d_run *run, const licag3d_path_costs *costs, int64_t *state,
                                           double *cost);

#ifdef __cplusplus
}
#endif

#endif  // LICAG3D_MATCH_H
