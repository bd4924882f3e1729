# SPDX-License-Identifier: Apache-2.0
"""From a contrast-free view to a synthesised one: what the frame is fit for, which network draws, what to warn of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.models.mask_first import NAME, THRESHOLD, Synthesis
from licag3d.structures import View

WARNING = "Synthetic contrast: the vessels were predicted, not seen. Not for diagnosis."
#: Share of the X-ray field that is black or white: warned of above the first, refused above the second.
CLIPPED, LOST = 0.08, 0.5
#: From this much contrast (:func:`contrast_seen`) a frame is taken to hold it already. On 20 validation phantoms it
#: was 36 mm at most with a fifth of the contrast left and 52 mm at least with all of it, one barely filled tree aside.
CONTRAST_MM = 42.0
#: Promised Dice below which the drawn vessels are called a guess.
GUESS = 0.5

Synthesiser = Callable[[View], Synthesis]


@dataclass(frozen=True)
class Drawing:
    """A view and the angiogram that was made of it, with what a user must know, one sentence each."""

    view: View
    synthesis: Synthesis
    warnings: tuple[str, ...]


def load_synthesiser(weights: str = NAME, device: str = "cpu", threshold: float | None = THRESHOLD) -> Synthesiser:
    """The network that draws: mask-first synthesis or CAS-GAN, told apart by the weights.

    Args:
        weights: an embedded name, or a ``.safetensors`` file of ``licag3d.train`` mask-first, casgan or
            synthesis-rivals.
        threshold: of mask-first synthesis, see :func:`licag3d.models.mask_first.synthesise`.

    Raises:
        InputError: missing, damaged, or weights of another model.
    """
    from licag3d import weights as embedded

    own = weights.endswith(".safetensors")
    if not own and not embedded.available(weights):
        raise InputError(
            "no synthesis weights are part of this installation: give a file of python -m licag3d.train mask-first or "
            "casgan (--weights; --synthesis-weights of licag3d.invert)"
        )
    if own:
        from licag3d.train.checkpoints import load_weights

        model = load_weights(weights)[1].get("model")
        if model in ("casgan", "synthesis-rival"):
            return _generator(weights, device, model)
    from licag3d.models.mask_first import load_mask_first, synthesise

    model, _ = load_mask_first(weights, device)
    return lambda view: synthesise(model, view.image, view.valid, view.camera.mm_per_pixel, threshold=threshold)


def _generator(weights: str, device: str, kind: str) -> Synthesiser:
    """A network that makes pictures; its attention (darkening, where it has none) stands for the probability."""
    from licag3d.models import casgan, synthesis_rivals
    from licag3d.models.mask_first import expected_dice

    load, synthesise = (
        (casgan.load_casgan, casgan.synthesise)
        if kind == "casgan"
        else (synthesis_rivals.load_rival, synthesis_rivals.synthesise)
    )
    model, facts = load(weights, device)
    working_mm = facts.get("working_mm")
    # A file's word on the pixel size decides how large frames become: it is bounded.
    if not isinstance(working_mm, (int, float)) or not 0.05 <= working_mm <= 5:
        raise InputError(f"{weights}: working_mm is {working_mm!r}, no pixel size of 0.05 to 5 mm; train it anew")

    def draw(view: View) -> Synthesis:
        made, attention = synthesise(model, view.image, view.camera.mm_per_pixel, float(working_mm))
        made = np.where(view.valid, made.clip(0, 1), view.image).astype(np.float32)
        attention = (attention * view.valid).clip(0, 1).astype(np.float32)
        darker = np.log((view.image + 1 / 64) / (made + 1 / 64)).clip(0)
        undecided = (2 * np.minimum(attention, 1 - attention)).astype(np.float32)
        return Synthesis(made, attention, darker.astype(np.float32), undecided, THRESHOLD, expected_dice(attention))

    return draw


def draw_contrast(view: View, synthesiser: Synthesiser) -> Drawing:
    """Check a contrast-free view and draw the vessels into it.

    Raises:
        InputError: more than half of the frame is black or white.
    """
    warnings = list(frame_warnings(view))
    made = synthesiser(view)
    if not np.isfinite(made.expected_dice):
        warnings.append(f"{view.file}: no vessel was likely enough to be drawn: the result is the frame itself.")
    elif made.expected_dice < GUESS:
        warnings.append(
            f"{view.file}: the drawn vessels are a guess (the network itself expects a Dice overlap of "
            f"{made.expected_dice:.2f} with the true ones): without residual contrast the frame does not say where "
            "they are."
        )
    return Drawing(view, made, tuple(warnings))


def frame_warnings(view: View) -> tuple[str, ...]:
    """What speaks against a frame as a contrast-free one, one sentence each.

    Raises:
        InputError: more than half of the frame is black or white.
    """
    inside = view.image[view.valid] if view.valid.any() else view.image
    black, white = float((inside <= 0.004).mean()), float((inside >= 0.996).mean())
    clipped = black + white
    if clipped > LOST:
        raise InputError(
            f"{view.file}: {100 * clipped:.0f} % of the frame is black or white: nothing can be seen there; export it "
            "with another window"
        )
    found = []
    if clipped > CLIPPED:
        found.append(
            f"{view.file}: {100 * clipped:.0f} % of the frame is black or white; what lies there is lost: export it "
            "with a wider window."
        )
    length_mm, amount_mm = contrast_seen(view)
    if amount_mm >= CONTRAST_MM:
        found.append(
            f"{view.file}: the frame seems to hold contrast already ({length_mm:.0f} mm of vessels are seen): its "
            "vessels are darkened again; give a frame from before the injection."
        )
    if any("bright in this file" in note for note in view.notes):
        found.append(f"{view.file}: the grey values were turned over; if that is wrong give --polarity dark.")
    return tuple(found)


def contrast_seen(view: View) -> tuple[float, float]:
    """Length of the vessels that the angiogram segmentor is sure of, catheters and wires left out, mm at the isocentre;
    and that length times their line integral (75th percentile), mm: faint vessels count little.
    """
    from skimage.morphology import skeletonize

    from licag3d.metrics.synthesis import line_length_px
    from licag3d.models.learned_evidence import LearnedRules, vessel_mask
    from licag3d.models.segmentor import load_segmentor, predict

    mm = view.camera.mm_per_pixel
    found = predict(load_segmentor(), view.image, view.valid, mm)
    line = skeletonize(vessel_mask(found.vessel * view.valid, mm, LearnedRules())) & (found.device < 0.2)
    if not line.any():
        return 0.0, 0.0
    length_mm = line_length_px(line) * mm
    return length_mm, length_mm * float(np.percentile(found.line_integral[line], 75))


def emptiest_frame(view: View) -> int | None:
    """The frame of a cine with the least contrast, for a view that was read from a whole cine; None for a still."""
    if view.scores is None or len(view.scores) < 2:
        return None
    scores = np.convolve(np.pad(view.scores, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    return int(np.argmin(scores))


def read_contrast_free(files: list[str], **reading) -> tuple[list[View], list[str]]:
    """Views of contrast-free frames; of a cine without ``#frame`` the frame with the least contrast is taken.

    Args:
        reading: arguments of :func:`licag3d.io.views.read_views`.

    Returns:
        The views and what was assumed or is doubtful.

    Raises:
        InputError: as :func:`licag3d.io.views.read_views`.
    """
    from licag3d.io.views import read_views

    views, notes = read_views(files, **reading)
    chosen = [emptiest_frame(view) for view in views]
    if any(number is not None for number in chosen):
        named = [f if number is None else f"{f}#{number}" for f, number in zip(files, chosen, strict=True)]
        again, notes = read_views(named, **reading)
        views = [
            replace(new, notes=(*new.notes, f"Frame {number} was taken: it shows the least contrast of its cine."))
            if number is not None
            else old
            for old, new, number in zip(views, again, chosen, strict=True)
        ]
    return views, notes


def synthesised_views(files: list[str], synthesiser: Synthesiser, **reading) -> tuple[list[View], list[str]]:
    """Contrast-free frames read and drawn into, for the reconstruction.

    Args:
        reading: arguments of :func:`licag3d.io.views.read_views`.

    Returns:
        Views of the synthesised angiograms, and what must be known of them, the first of it that they are synthetic.

    Raises:
        InputError: as :func:`read_contrast_free`, or a frame into which not one vessel could be drawn.
    """
    views, notes = read_contrast_free(files, **reading)
    drawings = [draw_contrast(view, synthesiser) for view in views]
    for drawing in drawings:
        if not np.isfinite(drawing.synthesis.expected_dice):
            raise InputError(
                f"{drawing.view.file}: no vessel was likely enough to be drawn, so there is nothing to reconstruct: "
                "give a frame with residual contrast, or an angiogram without --synthesize"
            )
    warnings = [WARNING + " So is the tree that was reconstructed from them."]
    warnings += [text for drawing in drawings for text in drawing.warnings]
    made = [
        replace(drawing.view, image=drawing.synthesis.angiogram, background=None, scores=None) for drawing in drawings
    ]
    return made, list(dict.fromkeys([*warnings, *notes]))
