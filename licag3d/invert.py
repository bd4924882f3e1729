# SPDX-License-Identifier: Apache-2.0
"""Reconstruct a 3D coronary tree from X-ray angiograms: ``python -m licag3d.invert --views a.png b.png --out out``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, add_geometry_flags, device_of, geometry_of, run
from licag3d.errors import InputError

_EXAMPLES = """examples:
  python -m licag3d.invert --views a.dcm b.dcm --out out
  python -m licag3d.invert --views cine.dcm#8 b.dcm --out out --quality best
  python -m licag3d.invert --views a.png b.png --angles 31.3,0.1 -27.3,-0.1 --sid 860 --sod 720 \\
      --pixel-spacing 0.39 --out out
"""


def parser() -> Parser:
    """The command line of ``licag3d.invert``."""
    made = Parser(
        prog="python -m licag3d.invert",
        epilog=_EXAMPLES,
        description="Reconstruct a 3D coronary vessel tree from two (1 to 8) X-ray angiograms.",
    )
    made.add_argument(
        "--views",
        nargs="+",
        required=True,
        metavar="FILE",
        help="PNG, TIFF, JPEG or DICOM XA; file.dcm#8 takes frame "
        "8 (counted from 0), otherwise the key frame of a cine is found. The first view is the reference",
    )
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the results; made if missing")
    add_geometry_flags(made)
    made.add_argument(
        "--masks",
        nargs="+",
        metavar="FILE",
        help="vessel masks, one image per view: vessels bright, or labels 1 to 32 on 0",
    )
    made.add_argument(
        "--evidence",
        choices=("auto", "learned", "classical"),
        default="auto",
        help="how vessels are found: by a trained network, by oriented filters, or auto: the network where its weights "
        "are installed",
    )
    made.add_argument(
        "--camera-correction",
        choices=("evolution", "none"),
        default="evolution",
        help="evolution: search the table offset and the angle errors of every view; none: cameras are exact",
    )
    made.add_argument(
        "--prior",
        default="embedded",
        metavar="embedded|none|PATH",
        help="generator of coronary trees that completes what the views leave open: embedded (trained on synthetic "
        "trees), none (only what both views agree on), or own weights (.safetensors of licag3d.train generator)",
    )
    made.add_argument(
        "--artery",
        choices=("auto", "lca", "rca"),
        default="auto",
        help="artery shown, for the prior; auto: the one that fits the views better",
    )
    made.add_argument(
        "--skip",
        nargs="+",
        default=(),
        metavar="STAGE",
        help="stages to leave out: prior, refinement, field (the search of cameras: --camera-correction none)",
    )
    made.add_argument(
        "--quality", choices=("fast", "default", "best"), default="default", help="effort of search and refinement"
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    made.add_argument("--seed", type=int, default=0, help="same inputs, seed and device: same outputs")
    made.add_argument("--spacing", type=float, default=0.5, metavar="MM", help="voxel size of the volumes in mm")
    made.add_argument(
        "--synthesize",
        action="store_true",
        help="the views are contrast-free: draw the vessels into them first (python -m licag3d.synthesize); the tree "
        "is then a prediction",
    )
    made.add_argument(
        "--synthesis-weights",
        default="synthesis",
        metavar="FILE",
        help="own weights for --synthesize in place of the embedded ones (.safetensors of licag3d.train mask-first, "
        "casgan or synthesis-rivals)",
    )
    made.add_argument(
        "--catheter-french",
        type=float,
        metavar="F",
        help="outer diameter of the catheter in the frames in French (1/3 mm), 4 to 9: its shadow then speaks on the "
        "absolute scale, beside the assumption that the tree lies near the isocentre",
    )
    made.add_argument(
        "--second-look",
        action="store_true",
        help="see the frames again with the fitted tree in mind: finds more of a common anatomy, and may draw an "
        "uncommon one as a common one (docs/inversion.md)",
    )
    made.add_argument(
        "--resume", action="store_true", help="go on after an interrupted run with the same inputs and settings"
    )
    made.add_argument("--quiet", action="store_true", help="no progress display")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Read, reconstruct, write, and say where the files lie."""
    given = parser().parse_args(argv)
    from licag3d.io.atomic import check_output_folder

    folder = check_output_folder(given.out)
    from licag3d.inversion.settings import inversion_settings
    from licag3d.io.views import read_views

    settings = inversion_settings(
        quality=given.quality,
        seed=given.seed,
        device=device_of(given.device),
        spacing_mm=given.spacing,
        camera_correction=given.camera_correction,
        evidence=given.evidence,
        prior=given.prior,
        artery=given.artery,
        skip=given.skip,
        catheter_french=given.catheter_french,
        second_look=given.second_look,
    )
    reading = {"masks": given.masks, **geometry_of(given)}
    if given.synthesize:
        from licag3d.models.virtual_contrast import load_synthesiser, synthesised_views

        synthesiser = load_synthesiser(given.synthesis_weights, device_of(given.device))
        views, notes = synthesised_views(given.views, synthesiser, **reading)
    else:
        views, notes = read_views(given.views, **reading)
    # What was read as it should be stands under each view in the report; here only what a user must know.
    routine = {f"View {k} ({view.file}): {note}" for k, view in enumerate(views, 1) for note in view.notes}
    files = [Path(str(name)).name.partition("#")[0] for name in (*given.views, *(given.masks or ()))]
    assumptions = [note for note in notes if _is_assumption(note, files)]
    warnings = [note for note in notes if note not in routine and note not in assumptions]
    from licag3d.inversion.pipeline import reconstruct
    from licag3d.inversion.state import StageStore
    from licag3d.report.result import write_result

    finished, made = StageStore(folder, "", resume=True), not folder.exists()
    with _display(given.quiet) as tell:
        try:
            result = reconstruct(
                views,
                settings,
                warnings=warnings,
                assumptions=assumptions,
                progress=tell,
                resume_folder=folder,
                resume=given.resume,
                command="python -m licag3d.invert " + _shown(argv),
            )
        except InputError:
            finished.clear()  # the same input would fail again: there is nothing to resume
            if made and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            raise
        tell("files", 0.0, "writing")
        written = write_result(folder, result)
        tell("files", 1.0, f"{len(written)} files")
    finished.clear()
    _summary(result, written)
    return 0


def _is_assumption(note: str, files: list[str]) -> bool:
    """Whether a note of the reader states an assumption; names of files do not count as words of it."""
    for name in files:
        note = note.replace(name, "")
    return "assum" in note.lower() or "derived" in note


def _shown(argv: list[str]) -> str:
    """The command for the record, file names without their folders (a path may name a patient)."""
    return shlex.join([Path(word).name if os.sep in word else word for word in argv])


def _summary(result, written) -> None:
    from licag3d.vessels.tree import component_count

    for warning in result.warnings:
        print(f"warning: {warning}")
    for assumption in result.assumptions:
        print(f"assumed: {assumption}")
    pieces = component_count(result.tree)
    print(
        f"tree: {len(result.tree.branches)} branches, {result.tree.length_mm:.0f} mm, {pieces} connected "
        f"piece{'s' * (pieces != 1)}, {result.seconds:.0f} s"
    )
    for k, values in enumerate(result.metrics, 1):
        if "vessel_explained" not in values:
            print(f"view {k}: the tree does not show in it")
            continue
        print(
            f"view {k}: centreline {values['centerline_to_vessel_px']:.1f} px from the vessel (median), "
            f"{100 * values['vessel_explained']:.0f} % of the vessels explained"
        )
    print(f"surface: {written['vessels.stl']}")
    print(f"volume:  {written['attenuation.nii.gz']}")
    print(f"report:  {written['report.html']}")


class _display:
    """Progress: a bar on a terminal, one line per finished stage otherwise."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar = None
        self.tasks: dict[str, int] = {}

    def __enter__(self):
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self.bar = Progress(
                TextColumn("{task.fields[stage]:>9}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )
            self.bar.start()
        return self.tell

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.stop()

    def tell(self, stage: str, share: float, text: str) -> None:
        """Show how far a stage is."""
        if self.bar is not None:
            if stage not in self.tasks:
                self.tasks[stage] = self.bar.add_task("", total=1.0, stage=stage, text=text)
            self.bar.update(self.tasks[stage], completed=share, text=text)
        elif not self.quiet and share >= 1.0:
            print(f"{stage}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
