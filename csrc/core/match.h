// SPDX-License-Identifier: Apache-2.0
// One camera candidate of the centreline matching; the readable twin is licag3d/ops/reference/match.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "licag3d_match.h"

namespace licag3d {

struct MatchCandidate {
  double x, y, z;  // in the baseline frame, mm
  double cost;     // per mm of the point
  int64_t piece;   // of the other view
};

struct MatchScratch {
  std::vector<int64_t> bin_start, bin_edge;
  std::vector<MatchCandidate> here, before;
  std::vector<double> reach, next;      // cheapest cost of every state
  std::vector<double> length, longer;   // matched length on that path
};

constexpr int64_t kMatchLimit = 32;  // candidates of a point

struct MatchView {
  const licag3d_chains *chains;
  const double *theta;
  const double *phi;
};

inline double match_triangulate(double baseline, double theta, double phi_first, double phi_second, double *xyz) {
  double apex = std::sin(phi_second - phi_first);
  if (std::fabs(apex) < 1e-6) apex = 1e-6;
  const double far = 10 * baseline;
  const double distance = std::min(std::max(baseline * std::sin(phi_second) / apex, -far), far);
  const double height = distance * std::sin(phi_first);
  xyz[0] = distance * std::cos(phi_first);
  xyz[1] = height * std::cos(theta);
  xyz[2] = height * std::sin(theta);
  return distance;
}

// Edges of the other view sorted into bins of plane angle, so that a point looks at few of them.
struct EdgeBins {
  double low = 0, scale = 1;
  int64_t count = 1;
  int64_t bin(double theta) const {
    const double at = (theta - low) * scale;
    return at <= 0 ? 0 : std::min<int64_t>(count - 1, static_cast<int64_t>(at));
  }
};

inline EdgeBins match_bins(const MatchView &other, double pad, MatchScratch &s) {
  EdgeBins bins;
  const int64_t n = other.chains->points;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (int64_t j = 0; j < n; ++j) {
    low = std::min(low, other.theta[j]);
    high = std::max(high, other.theta[j]);
  }
  bins.low = low - pad;
  bins.count = 256;
  bins.scale = bins.count / std::max(high - low + 2 * pad, 1e-9);
  s.bin_start.assign(bins.count + 1, 0);
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t p = 0; p < other.chains->pieces; ++p) {
      for (int64_t j = other.chains->start[p]; j + 1 < other.chains->start[p + 1]; ++j) {
        const double a = other.theta[j], b = other.theta[j + 1];
        const int64_t first = bins.bin(std::min(a, b) - pad), last = bins.bin(std::max(a, b) + pad);
        for (int64_t k = first; k <= last; ++k) {
          if (pass == 0)
            ++s.bin_start[k + 1];
          else
            s.bin_edge[s.bin_start[k]++] = j;
        }
      }
    }
    if (pass == 0) {
      for (int64_t k = 0; k < bins.count; ++k) s.bin_start[k + 1] += s.bin_start[k];
      s.bin_edge.resize(s.bin_start[bins.count]);
    }
  }
  for (int64_t k = bins.count; k > 0; --k) s.bin_start[k] = s.bin_start[k - 1];
  s.bin_start[0] = 0;
  return bins;
}

inline void match_candidates(const MatchView &own, const MatchView &other, const licag3d_match_prices &price, bool swapped,
                             double baseline, int64_t i, const EdgeBins &bins, const std::vector<int64_t> &piece_of,
                             const MatchScratch &s, std::vector<MatchCandidate> &out) {
  out.clear();
  const licag3d_chains &b = *other.chains;
  const double theta = own.theta[i], phi = own.phi[i];
  const int64_t bin = bins.bin(theta);
  for (int64_t at = s.bin_start[bin]; at < s.bin_start[bin + 1]; ++at) {
    const int64_t j = s.bin_edge[at], p = piece_of[j];
    const double low = other.theta[j], rise = other.theta[j + 1] - low;
    const double fraction = std::fabs(rise) < 1e-9 ? 0.5 : (theta - low) / rise;
    const double clipped = std::min(std::max(fraction, 0.0), 1.0);
    const double miss = std::fabs(theta - low - clipped * rise) * price.reach_mm;
    if (!(fraction >= 0 && fraction < 1)) {
      const bool flat = std::fabs(rise) * price.reach_mm < price.flat * std::max(b.step_mm[j + 1], 1e-6);
      const bool terminal = j == b.start[p] || j + 2 == b.start[p + 1];
      if (miss >= price.tolerance_mm || !(flat || terminal)) continue;
    }
    MatchCandidate c;
    const double log_radius = clipped < 0.5 ? b.log_radius[j] : b.log_radius[j + 1];
    const double calibre = std::min(std::fabs(own.chains->log_radius[i] - log_radius), price.calibre_cap);
    c.cost = price.calibre * calibre + 0.5 * (miss / price.tolerance_mm) * (miss / price.tolerance_mm);
    c.piece = p;
    const double phi_other = other.phi[j] + clipped * (other.phi[j + 1] - other.phi[j]);
    double xyz[3];
    match_triangulate(baseline, theta, swapped ? phi_other : phi, swapped ? phi : phi_other, xyz);
    c.x = xyz[0];
    c.y = xyz[1];
    c.z = xyz[2];
    out.push_back(c);
  }
  if (static_cast<int64_t>(out.size()) > kMatchLimit) {
    std::stable_sort(out.begin(), out.end(), [](const auto &l, const auto &r) { return l.cost < r.cost; });
    out.resize(kMatchLimit);
  }
}

// Viterbi over every piece; adds up the cheapest costs and the matched length of these paths.
inline void match_cost_one(const MatchView &own, const MatchView &other, const licag3d_match_prices &price, bool swapped,
                           double baseline, const double *turn, const std::vector<int64_t> &piece_of, MatchScratch &s,
                           double *cost, double *matched_mm) {
  const licag3d_chains &a = *own.chains;
  double total = 0, matched = 0;
  const EdgeBins bins = match_bins(other, price.tolerance_mm / price.reach_mm, s);
  for (int64_t p = 0; p < a.pieces; ++p) {
    for (int64_t i = a.start[p]; i < a.start[p + 1]; ++i) {
      match_candidates(own, other, price, swapped, baseline, i, bins, piece_of, s, s.here);
      const size_t count = s.here.size();
      s.next.assign(count + 1, 0.0);
      s.longer.assign(count + 1, 0.0);
      const double weight = a.weight_mm[i];
      for (size_t k = 0; k <= count; ++k) {
        double best = 0, length = 0;
        if (i > a.start[p]) {
          const size_t previous = s.before.size();
          // from the unmatched state
          best = s.reach[previous] + (k == count ? 0.0 : price.gap);
          length = s.length[previous];
          for (size_t l = 0; l < previous; ++l) {
            double step = price.gap;
            if (k < count) {
              const double dx = s.here[k].x - s.before[l].x, dy = s.here[k].y - s.before[l].y,
                           dz = s.here[k].z - s.before[l].z;
              const double distance = std::sqrt(dx * dx + dy * dy + dz * dz);
              step = price.jump * std::min(std::max(distance - price.slack * a.step_mm[i], 0.0), price.jump_cap_mm) +
                     turn[s.before[l].piece * other.chains->pieces + s.here[k].piece];
            }
            if (s.reach[l] + step < best) {
              best = s.reach[l] + step;
              length = s.length[l];
            }
          }
        }
        s.next[k] = best + weight * (k < count ? s.here[k].cost : price.none);
        s.longer[k] = length + (k < count ? weight : 0.0);
      }
      s.reach.swap(s.next);
      s.length.swap(s.longer);
      s.before.swap(s.here);
    }
    if (a.start[p + 1] > a.start[p]) {
      const auto best = std::min_element(s.reach.begin(), s.reach.end()) - s.reach.begin();
      total += s.reach[best];
      matched += s.length[best];
    }
  }
  *cost = total;
  *matched_mm = matched;
}

}  // namespace licag3d
