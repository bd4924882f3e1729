// SPDX-License-Identifier: Apache-2.0
// A ray through round cones. A round cone is the union of the balls whose centre and radius run linearly from one end to
// the other, which is the convex hull of its two end balls: a ray meets it in one interval, whose ends lie on a ball or
// on the cone that touches both.
#pragma once

#include "core/platform.h"
#include "core/rays.h"

LICAG3D_CORE_BEGIN

struct Interval {
  double from, to;
};

struct UnitRay {
  double origin[3], unit[3], length_mm;
};

LICAG3D_HD UnitRay unit_ray(const RayMm &ray) {
  UnitRay out;
  out.length_mm = sqrt(ray.direction[0] * ray.direction[0] + ray.direction[1] * ray.direction[1] +
                       ray.direction[2] * ray.direction[2]);
  for (int a = 0; a < 3; ++a) {
    out.origin[a] = ray.origin[a];
    out.unit[a] = out.length_mm > 0 ? ray.direction[a] / out.length_mm : 0.0;
  }
  return out;
}

LICAG3D_HD double dot3(const double *a, const double *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

LICAG3D_HD void widen(Interval &interval, double t) {
  interval.from = t < interval.from ? t : interval.from;
  interval.to = t > interval.to ? t : interval.to;
}

// Widens by the part of the line o + t d (|d| = 1, m = o - centre) inside a ball.
LICAG3D_HD void widen_by_ball(const double *m, const double *d, double radius, Interval &interval) {
  const double b = dot3(m, d), discriminant = radius * radius - (dot3(m, m) - b * b);
  if (discriminant <= 0) return;
  const double half = sqrt(discriminant);
  widen(interval, -b - half);
  widen(interval, -b + half);
}

// The part of a ray inside segment (8 numbers of the C ABI), clipped to the ray; from >= to when they do not meet.
//
// Cone: with w the unit axis from a to b, s = (ra - rb)/|ab| and c^2 = 1 - s^2, the tangent cone is the set of points at
// axial position h and distance q from the axis with q c = ra - s h, between its circles of contact h = s ra and
// h = |ab| + s rb. With q^2 = |x - a|^2 - h^2 this is a quadratic in t.
LICAG3D_HD Interval segment_interval(const UnitRay &ray, const double *segment) {
  Interval out = {1e300, -1e300};
  const double *a = segment, *b = segment + 4;
  const double ra = segment[3], rb = segment[7];
  const double axis[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
  // Count t from the point nearest to the middle, so that squares of hundreds of mm do not swamp those of the radius.
  const double to_middle[3] = {0.5 * (a[0] + b[0]) - ray.origin[0], 0.5 * (a[1] + b[1]) - ray.origin[1],
                               0.5 * (a[2] + b[2]) - ray.origin[2]};
  const double shift = dot3(to_middle, ray.unit);
  double ma[3], mb[3];
  for (int i = 0; i < 3; ++i) {
    const double near = ray.origin[i] + shift * ray.unit[i];
    ma[i] = near - a[i];
    mb[i] = near - b[i];
  }
  widen_by_ball(ma, ray.unit, ra, out);
  widen_by_ball(mb, ray.unit, rb, out);
  const double length = sqrt(dot3(axis, axis)), taper = ra - rb;
  if (length > fabs(taper)) {  // otherwise one ball holds the other
    const double w[3] = {axis[0] / length, axis[1] / length, axis[2] / length};
    const double s = taper / length, cc = 1 - s * s;
    const double h0 = dot3(ma, w), hd = dot3(ray.unit, w);
    const double qa = cc - hd * hd, qb = cc * dot3(ma, ray.unit) - h0 * hd + s * ra * hd;
    const double qc = cc * dot3(ma, ma) - h0 * h0 + 2 * s * ra * h0 - ra * ra;
    double roots[2];
    int count = 0;
    if (fabs(qa) < 1e-14) {
      if (qb != 0) roots[count++] = -0.5 * qc / qb;
    } else {
      const double discriminant = qb * qb - qa * qc;
      if (discriminant > 0) {
        // The form without cancellation.
        const double half = -(qb + (qb >= 0 ? sqrt(discriminant) : -sqrt(discriminant)));
        roots[count++] = half / qa;
        if (half != 0) roots[count++] = qc / half;
      }
    }
    for (int i = 0; i < count; ++i) {
      const double h = h0 + roots[i] * hd;
      if (h >= s * ra && h <= length + s * rb) widen(out, roots[i]);
    }
  }
  out.from += shift;
  out.to += shift;
  out.from = out.from > 0 ? out.from : 0;
  out.to = out.to < ray.length_mm ? out.to : ray.length_mm;
  return out;
}

// A ball that holds the segment: centre and radius.
LICAG3D_HD void bounding_ball(const double *segment, double *centre, double *radius) {
  const double *a = segment, *b = segment + 4;
  const double axis[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
  const double length = sqrt(dot3(axis, axis)), ra = segment[3], rb = segment[7];
  // The hull of two balls on one line reaches from -ra to length + rb; one may hold the other.
  const double from = -ra < length - rb ? -ra : length - rb, to = length + rb > ra ? length + rb : ra;
  const double at = length > 0 ? 0.5 * (from + to) / length : 0.0;
  for (int i = 0; i < 3; ++i) centre[i] = a[i] + at * axis[i];
  *radius = 0.5 * (to - from);
}

LICAG3D_HD bool ray_meets_ball(const UnitRay &ray, const double *centre, double radius) {
  const double m[3] = {centre[0] - ray.origin[0], centre[1] - ray.origin[1], centre[2] - ray.origin[2]};
  const double along = dot3(m, ray.unit);
  return dot3(m, m) - along * along <= radius * radius * (1 + 1e-9) + 1e-9;
}

// Disjoint intervals in ascending order. A ray through a vessel tree crosses a handful of vessels; the room is for that.
template <int kRoom>
struct IntervalUnion {
  Interval at[kRoom];
  int count = 0;

  // False when there is no room; the union is then useless.
  LICAG3D_HD bool add(Interval more) {
    if (!(more.to > more.from)) return true;
    int first = 0;
    while (first < count && at[first].to < more.from) ++first;
    int past = first;
    while (past < count && at[past].from <= more.to) {
      more.from = at[past].from < more.from ? at[past].from : more.from;
      more.to = at[past].to > more.to ? at[past].to : more.to;
      ++past;
    }
    const int change = 1 - (past - first);
    if (count + change > kRoom) return false;
    if (change > 0)
      for (int i = count - 1; i >= past; --i) at[i + 1] = at[i];
    if (change < 0)
      for (int i = past; i < count; ++i) at[i + change] = at[i];
    at[first] = more;
    count += change;
    return true;
  }

  LICAG3D_HD double length() const {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += at[i].to - at[i].from;
    return sum;
  }
};

// Length of the union of interval(0) ... interval(count - 1) without storing them: passes over all of them, once or more
// per disjoint piece. For the rare ray that has more pieces than an IntervalUnion holds.
template <class Get>
LICAG3D_HD double swept_length(int64_t count, const Get &interval) {
  double total = 0, position = -1e300;
  for (;;) {
    double from = 1e300, to = 1e300;
    for (int64_t i = 0; i < count; ++i) {
      const Interval next = interval(i);
      if (next.to > next.from && next.to > position && next.from < from) from = next.from, to = next.to;
    }
    if (from > 1e299) return total;
    for (bool grown = true; grown;) {
      grown = false;
      for (int64_t i = 0; i < count; ++i) {
        const Interval next = interval(i);
        if (next.to > next.from && next.from <= to && next.to > to) to = next.to, grown = true;
      }
    }
    total += to - from;
    position = to;
  }
}

LICAG3D_CORE_END
