// SPDX-License-Identifier: Apache-2.0
// The Viterbi algorithm over one piece of a chain, forwards and backwards, on given costs.
// Forney, The Viterbi algorithm, Proc. IEEE 61 (1973).
#pragma once

#include <cstdint>
#include <vector>

namespace licag3d {

// Costs of one piece: unary (count, states); pair (count, states, states) from the state before (rows) to the own one;
// pair of the first point is not read.
struct PathCosts {
  int64_t count;
  int64_t states;
  const double *unary;
  const double *pair;
};

// least[j] = min over i of before[i] + step[i][j], and where from, the first of equal ones, unless `from` is null.
inline void cheapest_step(int64_t states, const double *before, const double *step, double *least, int64_t *from) {
  for (int64_t j = 0; j < states; ++j) least[j] = before[0] + step[j];
  if (from)
    for (int64_t j = 0; j < states; ++j) from[j] = 0;
  for (int64_t i = 1; i < states; ++i) {
    const double *row = step + i * states;
    if (from) {
      for (int64_t j = 0; j < states; ++j) {
        const double way = before[i] + row[j];
        from[j] = way < least[j] ? i : from[j];
        least[j] = way < least[j] ? way : least[j];
      }
    } else {
      for (int64_t j = 0; j < states; ++j) {
        const double way = before[i] + row[j];
        least[j] = way < least[j] ? way : least[j];
      }
    }
  }
}

// margin (count, states): cheapest cost of a whole path of the piece that goes through every state.
inline void path_marginals(const PathCosts &costs, std::vector<double> &scratch, double *margin) {
  const int64_t states = costs.states;
  scratch.resize(3 * states);
  double *least = scratch.data(), *rest = least + states, *onward = rest + states;
  for (int64_t j = 0; j < states; ++j) margin[j] = costs.unary[j];
  for (int64_t t = 1; t < costs.count; ++t) {
    double *here = margin + t * states;
    cheapest_step(states, here - states, costs.pair + t * states * states, least, nullptr);
    for (int64_t j = 0; j < states; ++j) here[j] = costs.unary[t * states + j] + least[j];
  }
  for (int64_t j = 0; j < states; ++j) rest[j] = 0;
  for (int64_t t = costs.count - 1; t > 0; --t) {
    const double *step = costs.pair + t * states * states;
    for (int64_t j = 0; j < states; ++j) onward[j] = rest[j] + costs.unary[t * states + j];
    double *here = margin + (t - 1) * states;
    for (int64_t i = 0; i < states; ++i) {
      double best = onward[0] + step[i * states];
      for (int64_t j = 1; j < states; ++j) {
        const double way = onward[j] + step[i * states + j];
        best = way < best ? way : best;
      }
      rest[i] = best;
      here[i] += best;
    }
  }
}

// state (count): the cheapest path; returns its cost.
inline double cheapest_path(const PathCosts &costs, std::vector<double> &scratch, std::vector<int64_t> &back,
                            int64_t *state) {
  const int64_t states = costs.states;
  scratch.resize(2 * states);
  back.resize(costs.count * states);
  double *cost = scratch.data(), *least = cost + states;
  for (int64_t j = 0; j < states; ++j) cost[j] = costs.unary[j];
  for (int64_t t = 1; t < costs.count; ++t) {
    cheapest_step(states, cost, costs.pair + t * states * states, least, back.data() + t * states);
    for (int64_t j = 0; j < states; ++j) cost[j] = least[j] + costs.unary[t * states + j];
  }
  int64_t at = 0;
  for (int64_t j = 1; j < states; ++j)
    if (cost[j] < cost[at]) at = j;
  const double total = cost[at];
  for (int64_t t = costs.count - 1; t >= 0; --t) {
    state[t] = at;
    if (t) at = back[t * states + at];
  }
  return total;
}

}  // namespace licag3d
