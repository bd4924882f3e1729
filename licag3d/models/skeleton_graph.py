# SPDX-License-Identifier: Apache-2.0
"""A 2D skeleton as a graph: build, prune spurs, merge junctions, find crossings. Pixels are (row, col) in here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class SkeletonGraph:
    """Nodes (id -> position) and pieces (id -> node a, node b, chain of pixels between them, nodes excluded)."""

    nodes: dict[int, np.ndarray] = field(default_factory=dict)
    pieces: dict[int, tuple[int, int, np.ndarray]] = field(default_factory=dict)
    loops: set[int] = field(default_factory=set)
    next_id: int = 0

    def add_node(self, position) -> int:
        self.next_id += 1
        self.nodes[self.next_id] = np.asarray(position, float)
        return self.next_id

    def add_piece(self, a: int, b: int, chain) -> int:
        self.next_id += 1
        self.pieces[self.next_id] = (a, b, np.asarray(chain, float).reshape(-1, 2))
        return self.next_id

    def ends_at(self) -> dict[int, list[tuple[int, int]]]:
        """Per node, the (piece, end) that meet there; end 0 is the start of the piece."""
        meet: dict[int, list[tuple[int, int]]] = {n: [] for n in self.nodes}
        for piece, (a, b, _) in self.pieces.items():
            meet[a].append((piece, 0))
            meet[b].append((piece, 1))
        return meet

    def line(self, piece: int) -> np.ndarray:
        """The piece with both node positions, ``(n, 2)``."""
        a, b, chain = self.pieces[piece]
        return np.concatenate([self.nodes[a][None], chain, self.nodes[b][None]])

    def length(self, piece: int) -> float:
        return float(np.linalg.norm(np.diff(self.line(piece), axis=0), axis=1).sum())

    def join_through(self) -> None:
        """Dissolve nodes that only two different pieces meet at, and nodes that nothing meets at."""
        for node, ends in self.ends_at().items():
            # Pieces change while nodes dissolve: look the two up afresh.
            ends = [(p, e) for p, (a, b, _) in self.pieces.items() for e in (0, 1) if (a, b)[e] == node]
            if not ends:
                del self.nodes[node]
                self.loops.discard(node)
            elif len(ends) == 2 and ends[0][0] == ends[1][0]:
                self.loops.add(node)
            elif len(ends) == 2:
                (p, p_end), (q, q_end) = ends
                pa, pb, p_chain = self.pieces.pop(p)
                qa, qb, q_chain = self.pieces.pop(q)
                first = p_chain if p_end == 1 else p_chain[::-1]
                second = q_chain if q_end == 0 else q_chain[::-1]
                self.add_piece(pa if p_end == 1 else pb, qb if q_end == 0 else qa,
                               np.concatenate([first, self.nodes[node][None], second]))
                del self.nodes[node]


def build(mask: np.ndarray) -> SkeletonGraph:
    """Skeletonise a ``(rows, cols)`` bool mask and cut it at ends and junctions."""
    from skimage.morphology import skeletonize

    # Thinning erodes from the image edge too; a copied rim keeps vessels that leave the image whole.
    rim = 3
    skeleton = skeletonize(np.pad(mask, rim, mode="edge"))[rim:-rim, rim:-rim]
    pixels = {(int(r), int(c)) for r, c in np.argwhere(skeleton)}
    near = {pixel: _neighbours(pixel, pixels) for pixel in sorted(pixels)}
    graph = SkeletonGraph()
    node_of: dict[tuple[int, int], int] = {}
    for pixel, around in near.items():
        if len(around) >= 3 and pixel not in node_of:
            cluster, todo = [], [pixel]
            seen = {pixel}
            while todo:
                here = todo.pop()
                cluster.append(here)
                for other in near[here]:
                    if other not in seen and len(near[other]) >= 3:
                        seen.add(other)
                        todo.append(other)
            node = graph.add_node(np.mean(cluster, axis=0))
            node_of.update(dict.fromkeys(cluster, node))
        elif len(around) == 1:
            node_of[pixel] = graph.add_node(pixel)
    used: set[tuple[int, int]] = set()

    def walk(start, first) -> None:
        chain, before, here = [], start, first
        while here not in node_of:
            chain.append(here)
            used.add(here)
            onward = [x for x in near[here] if x != before]
            before, here = here, onward[0]
        a, b = node_of[start], node_of[here]
        if chain or a != b:
            graph.add_piece(a, b, chain)

    for pixel in list(node_of):
        for other in near[pixel]:
            if other in node_of:
                # Two nodes side by side (an end beside a junction): one piece, counted once.
                if node_of[other] > node_of[pixel]:
                    graph.add_piece(node_of[pixel], node_of[other], [])
            elif other not in used:
                walk(pixel, other)
    for pixel, around in near.items():
        if pixel not in used and pixel not in node_of and len(around) == 2:
            node_of[pixel] = graph.add_node(pixel)
            graph.loops.add(node_of[pixel])
            walk(pixel, around[0])
    return graph


def _neighbours(pixel, pixels) -> list[tuple[int, int]]:
    """The 8-neighbours, without the diagonals that a direct neighbour already connects (they would make triangles)."""
    r, c = pixel
    found = [(r + dr, c + dc) for dr, dc in ((-1, 0), (0, -1), (0, 1), (1, 0)) if (r + dr, c + dc) in pixels]
    for dr in (-1, 1):
        for dc in (-1, 1):
            if (r + dr, c + dc) in pixels and (r + dr, c) not in pixels and (r, c + dc) not in pixels:
                found.append((r + dr, c + dc))
    return found


def _at(distance_px: np.ndarray, position: np.ndarray) -> float:
    r, c = np.clip(np.rint(position).astype(int), 0, np.array(distance_px.shape) - 1)
    return float(distance_px[r, c])


def prune(
    graph: SkeletonGraph,
    distance_px: np.ndarray,
    *,
    spur_ratio: float,
    min_length_px: float,
    min_dead_end_px: float = 0.0,
) -> None:
    """Drop dead ends that are shorter than the vessel they leave is wide, the shortest first, and tiny free pieces."""
    graph.join_through()
    while True:
        meet = graph.ends_at()
        worst = None
        for piece, (a, b, _) in graph.pieces.items():
            free = [n for n in (a, b) if len(meet[n]) == 1]
            length = graph.length(piece)
            if len(free) == 2:
                limit = min_length_px
            elif len(free) == 1 and a != b:
                start = graph.nodes[b if free[0] == a else a]
                limit = max(spur_ratio * _at(distance_px, start) + 2.0, min_dead_end_px)
            elif a == b and a in graph.loops:
                limit = 2 * min_length_px
            else:
                continue
            if length < limit and (worst is None or length / limit < worst[0]):
                worst = (length / limit, piece)
        if worst is None:
            return
        del graph.pieces[worst[1]]
        graph.join_through()


def leaving(graph: SkeletonGraph, piece: int, end: int, reach_px: float) -> np.ndarray:
    """Unit direction (row, col) in which a piece leaves its node, over ``reach_px``."""
    line = graph.line(piece)
    line = line if end == 0 else line[::-1]
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    # The first radius belongs to the junction itself, where the skeleton bends towards the other vessel.
    inner, outer = np.searchsorted(arc, 0.35 * reach_px), np.searchsorted(arc, reach_px)
    outer = min(outer, len(line) - 1)
    inner = min(inner, max(outer - 1, 0))
    direction = line[outer] - line[inner]
    return direction / max(float(np.linalg.norm(direction)), 1e-9)


def merge_junctions(graph: SkeletonGraph, distance_px: np.ndarray, *, crossing_reach: float = 6.0,
                    straight_deg: float = 30.0) -> None:
    """Merge junctions that are one: two nodes closer than the vessel radius, and the two halves of a crossing.

    Two vessels that cross at a shallow angle share a stretch of skeleton. A piece of up to ``crossing_reach`` radii
    between two three-way nodes, through which both vessels run straight, becomes one four-way node in its middle.
    """
    while True:
        meet = graph.ends_at()
        best = None
        for piece, (a, b, _) in graph.pieces.items():
            if a == b or len(meet[a]) < 3 or len(meet[b]) < 3:
                continue
            length = graph.length(piece)
            radius = max(_at(distance_px, graph.nodes[a]), _at(distance_px, graph.nodes[b]))
            crossing = (length < crossing_reach * radius + 2 and len(meet[a]) == len(meet[b]) == 3
                        and _runs_straight(graph, meet, piece, a, b, radius, straight_deg))
            if (crossing or length < radius + 1.5) and (best is None or length < best[0]):
                best = (length, piece)
        if best is None:
            break
        piece = best[1]
        line = graph.line(piece)
        a, b, _ = graph.pieces.pop(piece)
        half = len(line) // 2
        node = graph.add_node(line[half])
        for other, (start, end, chain) in list(graph.pieces.items()):
            # Every piece keeps its half of the shared stretch, so that it still runs from node to node.
            before = {a: line[half - 1::-1] if half else line[:0], b: line[half + 1:]}
            if start in before:
                chain = np.concatenate([before[start], chain])
            if end in before:
                chain = np.concatenate([chain, before[end][::-1]])
            if {start, end} & {a, b}:
                graph.pieces[other] = (node if start in before else start, node if end in before else end, chain)
        del graph.nodes[a], graph.nodes[b]
    graph.join_through()


def _runs_straight(graph, meet, piece, a, b, radius, straight_deg) -> bool:
    """Whether the two arms at ``a`` continue into the two arms at ``b``."""
    reach = max(6.0, 3.5 * radius)
    arms_a = [leaving(graph, p, e, reach) for p, e in meet[a] if p != piece]
    arms_b = [leaving(graph, p, e, reach) for p, e in meet[b] if p != piece]
    if len(arms_a) != 2 or len(arms_b) != 2:
        return False
    limit = np.cos(np.radians(straight_deg))
    straight = min(-arms_a[0] @ arms_b[0], -arms_a[1] @ arms_b[1]) > limit
    crossed = min(-arms_a[0] @ arms_b[1], -arms_a[1] @ arms_b[0]) > limit
    return bool(straight or crossed)


def finish(graph: SkeletonGraph, distance_px: np.ndarray):
    """Number everything.

    Returns:
        nodes ``(M, 2)`` as (col, row), kinds (list of text), chains ``[(a, b, points (n, 2), radius (n,))]`` and
        crossings ``[(node, pairs)]`` with pairs of (piece, end).
    """
    number = {node: k for k, node in enumerate(graph.nodes)}
    piece_number = {piece: k for k, piece in enumerate(graph.pieces)}
    nodes = np.array([position[::-1] for position in graph.nodes.values()]).reshape(-1, 2)
    kinds, crossings = [], []
    for node, ends in graph.ends_at().items():
        kind = "loop" if len(ends) == 2 else "end" if len(ends) == 1 else "branch"
        if len(ends) == 4:
            pairs = _straight_pairs(graph, ends, _at(distance_px, graph.nodes[node]))
            if pairs:
                kind = "crossing"
                crossings.append((number[node], tuple(tuple((piece_number[p], e) for p, e in pair) for pair in pairs)))
        kinds.append(kind)
    chains = []
    for piece, (a, b, _) in graph.pieces.items():
        line = graph.line(piece)
        rc = np.clip(np.rint(line).astype(int), 0, np.array(distance_px.shape) - 1)
        chains.append((number[a], number[b], line[:, ::-1].copy(), distance_px[rc[:, 0], rc[:, 1]].astype(float)))
    return nodes, kinds, chains, crossings


def _straight_pairs(graph, ends, radius, straight_deg: float = 40.0):
    """The split of four arms into two pairs that both continue straight, or None."""
    reach = max(8.0, 5.0 * radius)
    arms = [leaving(graph, p, e, reach) for p, e in ends]
    best = None
    for (i, j), (k, m) in (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))):
        worst = max(arms[i] @ arms[j], arms[k] @ arms[m])
        if best is None or worst < best[0]:
            best = (worst, ((ends[i], ends[j]), (ends[k], ends[m])))
    return best[1] if best[0] < -np.cos(np.radians(straight_deg)) else None
