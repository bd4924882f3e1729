# SPDX-License-Identifier: Apache-2.0
"""Write the bundled examples: one right and one left synthetic pair, with truth (examples/README.md).

    python tools/make_examples.py              writes examples/rca and examples/lca anew
    python tools/make_examples.py --out DIR    writes them elsewhere

The same version of the project writes the same bytes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from licag3d.command import Parser, run
from licag3d.errors import InputError

#: Seeds chosen for clear pictures: a right-dominant patient, the main branches of both trees seen in both views.
SEEDS = {"rca": 37, "lca": 30}
SETTINGS = {"separation_deg": 60.0, "offset_mm": 5.0, "angle_error_deg": 0.0, "background": "full"}
LIMIT_BYTES = 2_000_000

README = """# Examples

Two synthetic cases, one right (`rca`) and one left (`lca`) coronary tree. No patient is shown: `python
tools/make_examples.py` draws the anatomy by seed, projects it with `licag3d.ops.project_tubes` (exact path lengths),
and adds chest, catheter, scatter, blur and noise (docs/phantom.md). Views are 60 degrees apart; between them the table
has moved by 5 mm, which `cameras.json` does not know, as in practice.

    python -m licag3d.invert --views examples/rca/view_1.png examples/rca/view_2.png \\
        --cameras examples/rca/cameras.json --artery rca --out out/rca
    python -m licag3d.evaluate --pred out/rca --truth examples/rca/truth

| file | content |
|---|---|
| `view_1.png`, `view_2.png` | the angiograms, 512 x 512, 8 bit |
| `cameras.json` | the cameras as a user has them: offsets zero |
| `truth/cameras.json` | the true offsets |
| `truth/centerlines.json` | the true tree, named branches with radii, LPS mm |
| `truth/labels.nii.gz` | the same as a label volume, 0.5 mm |
| `truth/view_1_mask.png`, ... | the true vessel masks, for `--masks` |
| `truth/held_out/` | a third view with its camera and mask, for scoring only |

The surface and the line integrals are left out to keep the repository small; `licag3d.phantom.write_case` writes them.
"""


def main(argv: list[str]) -> int:
    """Write both examples and the README."""
    parser: argparse.ArgumentParser = Parser(prog="python tools/make_examples.py", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=str(Path(__file__).resolve().parent.parent / "examples"), metavar="DIR",
                        help="folder that gets rca/, lca/ and README.md; these are replaced")
    out = Path(parser.parse_args(argv).out)

    from licag3d.io.atomic import write_text
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.write_case import Content, write_case

    for artery, seed in SEEDS.items():
        folder = out / artery
        case = simulate_case(seed, artery, **SETTINGS)
        if (folder / "truth" / "case.json").is_file():  # only a folder that this tool wrote is replaced
            shutil.rmtree(folder)
        write_case(folder, case, Content(projections=False, mesh=False, labels=True))
    write_text(out / "README.md", README)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.2f} MB")
    if size > LIMIT_BYTES:
        raise InputError(f"the examples have {size} bytes; the repository takes at most {LIMIT_BYTES}: leave files out")
    return 0


if __name__ == "__main__":
    run(main)
