# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train casgan``: CAS-GAN from unpaired (or paired) frames, and its ablation."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.cyclegan import frozen_vessel_map
from licag3d.train.loop import add_loop_flags

#: Pixel size at the isocentre that frames are brought to, mm; the segmentor looks at an enlargement.
SCALE_MM = (0.36, 0.46)
VALIDATION_CASES = 6
#: Of Adam, as in the CycleGAN family.
BETAS = (0.5, 0.999)


def add_flags(parser) -> None:
    """The flags."""
    add_loop_flags(
        parser, steps=20_000, batch=4, rate=2e-4, warmup=0, validate_every=1000, save_every=500, decay=0.0, clip=10.0
    )
    data = parser.add_argument_group("data: a pool of phantom pairs, or two folders of own frames")
    data.add_argument("--pool", metavar="DIR", help="pool of pairs or frames (python -m licag3d.data.contrast_pairs)")
    data.add_argument("--contrast-free", metavar="DIR", help="own contrast-free frames (PNG, TIFF, JPEG, DICOM)")
    data.add_argument("--angiograms", metavar="DIR", help="own angiograms, of any patients")
    data.add_argument("--pixel-size", type=float, default=0.25, metavar="MM", help="own frames: mm at the isocentre")
    data.add_argument("--validation", metavar="DIR", help="pool of validation pairs; made beside the run if missing")
    data.add_argument("--paired", action="store_true", help="compare with the angiogram of the same patient (phantom)")
    data.add_argument("--size", type=int, default=128, metavar="PX", help="rows and columns of a training crop")
    add_bank_flag(data)
    model = parser.add_argument_group("model")
    model.add_argument("--ablation", action="store_true", help="train all eight rows of the ablation, one by one")
    model.add_argument("--no-drl", action="store_true", help="without disentanglement: one code, no predictor")
    model.add_argument("--no-vsgg", action="store_true", help="without attention: the picture is generated whole")
    model.add_argument("--no-vsgl", action="store_true", help="without the discriminator of vessel maps")
    model.add_argument(
        "--composition", choices=("fusion", "attenuate"), default="fusion", help="x (1 - A) + C A, or x exp(-A C)"
    )
    model.add_argument("--channels", type=int, default=16, metavar="N", help="of the first layer of the generators")
    model.add_argument("--blocks", type=int, default=3, metavar="N", help="residual blocks of encoders and generators")
    model.add_argument("--leak-noise", type=float, default=0.0, metavar="S", help="noise before the predictor")
    model.add_argument(
        "--adversarial", choices=("least-squares", "log"), default="least-squares", help="form of the adversarial terms"
    )
    model.add_argument("--semantic-weight", type=float, default=0.5, metavar="W", help="of the vessel-map loss")


def add_bank_flag(parser) -> None:
    """``--bank`` and ``--bank-file``."""
    parser.add_argument(
        "--bank", type=int, default=0, metavar="N", help="make N samples once and draw from them; 0 makes all anew"
    )
    parser.add_argument("--bank-file", metavar="FILE", help="where the bank is kept, for several runs (safetensors)")


def main(arguments) -> int:
    """Train one row or all, and say what came out."""
    from licag3d.models.casgan import CasganConfig, ablation_rows
    from licag3d.train.loop import settings_of

    _check(arguments)
    settings = settings_of(arguments)
    base = CasganConfig(
        drl=not arguments.no_drl,
        vsgg=not arguments.no_vsgg,
        vsgl=not arguments.no_vsgl,
        composition=arguments.composition,
        channels=arguments.channels,
        blocks=arguments.blocks,
        patch_channels=arguments.channels,
        leak_noise=arguments.leak_noise,
    )
    if not arguments.ablation:
        data = _Data(arguments, settings)
        outcome = train_row(arguments, settings, base, Path(arguments.out), data, arguments.resume)
        print(_ended(outcome, "casgan"))
        return 0
    if arguments.no_drl or arguments.no_vsgg or arguments.no_vsgl:
        raise InputError("--ablation trains all eight rows: leave out --no-drl, --no-vsgg and --no-vsgl")
    return _ablation(arguments, settings, [replace(base, drl=d, vsgg=g, vsgl=s) for d, g, s in ablation_rows()])


def _check(arguments) -> None:
    own = (arguments.contrast_free, arguments.angiograms)
    if bool(own[0]) != bool(own[1]):
        raise InputError("--contrast-free and --angiograms belong together: give both folders, or --pool")
    if bool(own[0]) == bool(arguments.pool):
        raise InputError("give the data: either --pool DIR, or --contrast-free DIR with --angiograms DIR")
    if arguments.bank and own[0]:
        raise InputError("--bank holds samples of a phantom pool: leave it out with own folders")
    if arguments.bank_file and not arguments.bank:
        raise InputError(f"--bank-file {arguments.bank_file}: say with --bank N how many samples it holds")
    if arguments.paired and own[0]:
        raise InputError("--paired needs the pairs of a phantom pool: own folders are taken as unpaired")
    if arguments.size % 32 or not 32 <= arguments.size <= 1024:
        raise InputError(f"--size is {arguments.size}; give a multiple of 32 from 32 to 1024")
    if not 0.02 <= arguments.pixel_size <= 2:
        raise InputError(f"--pixel-size is {arguments.pixel_size} mm; give 0.02 to 2 mm at the isocentre")
    if not 0 <= arguments.semantic_weight <= 1000:
        raise InputError(f"--semantic-weight is {arguments.semantic_weight}; give 0 to 1000")


class _Data:
    """Batches and validation pairs; shared by the rows of an ablation."""

    def __init__(self, arguments, settings) -> None:
        from licag3d.data.contrast_bank import SampleBank
        from licag3d.data.contrast_pairs import KAPPAS, PairPool, grow_pairs
        from licag3d.data.contrast_samples import PairSettings, PairStream
        from licag3d.phantom.splits import VALIDATION
        from licag3d.train.mask_first import training_pairs, validation_pairs

        self.batch = settings.batch
        out = Path(arguments.out)
        if arguments.pool:
            paired = bool(arguments.paired or arguments.bank)
            look = PairSettings(size=arguments.size, scale_mm=SCALE_MM, shown=0.5, paired=paired)
            # One bank for trainings of all seeds.
            seed = 0 if arguments.bank else settings.seed
            self.stream = PairStream(training_pairs(arguments.pool), seed, look)
            self.facts = {"source": "phantom", "pool": Path(arguments.pool).name, "frames": self.stream.frames}
            if arguments.bank:
                self.stream = SampleBank.of(
                    self.stream, arguments.bank, arguments.bank_file, paired=arguments.paired, seed=settings.seed
                )
                self.facts["bank"] = arguments.bank
        else:
            self.stream = FolderStream.read(arguments, out, settings.seed)
            self.facts = {"source": "own folders", "frames": self.stream.counts}
        checked = Path(arguments.validation or out / "validation")
        if not (checked / "index.jsonl").is_file():
            grow_pairs(checked, VALIDATION_CASES, views=1, split=VALIDATION, kappas=KAPPAS)
        self.pairs = validation_pairs(PairPool(checked))

    def __call__(self, step: int) -> dict:
        return self.stream.batch(step, self.batch)


class FolderStream:
    """Crops of two banks of own frames, drawn independently: nothing says which belong together."""

    def __init__(self, contrast_free, angiograms, size: int, pixel_mm: float, seed: int) -> None:
        self.banks = (contrast_free, angiograms)
        self.size, self.pixel_mm, self.seed = size, pixel_mm, seed
        self.counts = [len(bank) for bank in self.banks]

    @classmethod
    def read(cls, arguments, out: Path, seed: int) -> FolderStream:
        """Read both folders into banks beside the run.

        Raises:
            InputError: a folder is missing, or nothing in it can be used.
        """
        from licag3d.data.frames import describe, prepare_frames

        banks = []
        for flag, folder in (("contrast-free", arguments.contrast_free), ("angiograms", arguments.angiograms)):
            try:
                bank = prepare_frames([folder], out / "frames" / flag)
            except InputError as error:
                raise InputError(f"--{flag}: {error}") from None
            print(f"{flag}: {describe(bank)}")
            banks.append(bank)
        return cls(*banks, arguments.size, arguments.pixel_size, seed)

    def batch(self, step: int, size: int) -> dict:
        """``x`` and ``y``, each ``(size, 1, s, s)`` in 0..1."""
        import torch

        drawn = [[self._crop(side, step * size + k) for k in range(size)] for side in (0, 1)]
        return {"x": torch.stack(drawn[0]), "y": torch.stack(drawn[1])}

    def _crop(self, side: int, index: int):
        import numpy as np
        import torch
        import torch.nn.functional as F

        rng = np.random.default_rng([self.seed, 74, side, index])
        bank = self.banks[side]
        image = bank.image(int(rng.integers(len(bank))))
        zoom = float(np.exp(rng.uniform(*np.log(SCALE_MM)))) / self.pixel_mm
        span = [int(min(n, max(8, round(self.size * zoom)))) for n in image.shape]
        top, left = (int(rng.integers(0, n - s + 1)) for n, s in zip(image.shape, span, strict=True))
        part = np.array(image[top : top + span[0], left : left + span[1]], np.float32) / 255
        part = part[:, ::-1] if rng.random() < 0.5 else part
        crop = torch.from_numpy(np.ascontiguousarray(part))[None, None]
        crop = F.interpolate(crop, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return crop[0].clamp(0, 1)


def train_row(arguments, settings, config, folder: Path, data: _Data, resume: bool):
    """Train one row into ``folder``; writes ``casgan.safetensors`` of its best validation.

    Raises:
        InputError: the training collapsed (the best checkpoint is kept), or the folder does not fit.
    """
    import torch

    from licag3d.losses.casgan import SOURCES, AttentionWatch, CasganWeights, casgan_loss
    from licag3d.models.casgan import OPEN, CasGan, config_from
    from licag3d.models.segmentor import count_parameters
    from licag3d.train.loop import load_into, load_weights, save_weights, train

    torch.manual_seed(settings.seed)
    model = CasGan(config)
    weights = CasganWeights(gan_semantic=arguments.semantic_weight)
    vessel_map = frozen_vessel_map(settings.device, sum(SCALE_MM) / 2) if config.vsgl else None
    watch = AttentionWatch()

    def loss(net, batch, step):
        total, numbers, made = casgan_loss(
            net, batch, vessel_map, weights, form=arguments.adversarial, paired=arguments.paired
        )
        if made.attention is not None:
            watch.look(float(numbers["attention"]), step)
        return total, numbers

    facts = {
        "model": "casgan",
        "config": asdict(config),
        "row": config.row,
        "parameters": count_parameters(model),
        "weights": asdict(weights),
        "adversarial": arguments.adversarial,
        "betas": list(BETAS),
        "paired": arguments.paired,
        "size": arguments.size,
        "working_mm": sum(SCALE_MM) / 2,
        "data": data.facts,
        "sources": {**SOURCES, **OPEN},
    }
    outcome = train(
        model,
        settings,
        folder,
        make_batch=data,
        loss=loss,
        validate=lambda average: validate(average, data.pairs),
        config=facts,
        resume=resume,
        betas=BETAS,
    )
    tensors, found = load_weights(folder / "best.safetensors")
    best = CasGan(config_from(found["config"], "best.safetensors"))
    load_into(best, tensors, "best.safetensors")
    save_weights(folder / "casgan.safetensors", best, found | {"seed": settings.seed})
    return outcome


def validate(model, pairs, draw=None) -> dict[str, float]:
    """Vessels of synthesised phantom frames against the exact ones, found by the classical evidence: it has learnt
    nothing, so that neither the generator nor the frozen segmentor can please it. ``score`` is the mean clDice.

    Args:
        draw: ``(model, image, mm_per_pixel, working_mm)`` to angiogram and attention; that of CAS-GAN without it.
    """
    import numpy as np

    from licag3d.metrics.synthesis import change_outside, independent_mask, vessel_scores
    from licag3d.models import casgan

    draw = draw or casgan.synthesise
    rows = []
    for number, pair in enumerate(pairs):
        truth = pair.before
        image = pair.images[number % len(pair.images)].astype(np.float32) / 255
        made, attention = draw(model, image, truth.mm_per_pixel, sum(SCALE_MM) / 2)
        found = independent_mask(made, truth.mm_per_pixel)
        row = vessel_scores(found, truth.mask, truth.mm_per_pixel, ignore=truth.faint)
        row["attention"] = float(attention.mean())
        row["change_outside"] = change_outside(made, image, truth.mask)
        rows.append(row)
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return mean | {"score": mean["cldice"]}


def _ablation(arguments, settings, configs) -> int:
    """All rows into folders of their own, then one table; rows that are finished are not trained again."""
    import json

    from licag3d.io.atomic import write_text

    out = Path(arguments.out)
    data = None
    table = []
    for config in configs:
        folder = out / f"row_{config.row.replace('-', 'o')}"
        done = folder / "row.json"
        if done.is_file() and arguments.resume:
            table.append(json.loads(done.read_text("utf-8")))
            continue
        data = data or _Data(arguments, settings)
        line = {"row": config.row, "drl": config.drl, "vsgg": config.vsgg, "vsgl": config.vsgl, "seed": settings.seed}
        try:
            again = arguments.resume and (folder / "config.json").is_file()
            outcome = train_row(arguments, settings, config, folder, data, again)
        except InputError as error:
            if "collapsed" not in str(error) and "the loss is" not in str(error):
                raise
            line |= {"collapsed": str(error)}
        else:
            if not outcome.finished:
                print(_ended(outcome, f"row {config.row}"))
                return 0
            line |= {"cldice": outcome.score, "best_step": outcome.best_step, "steps": outcome.steps}
        table.append(line)
        write_text(done, json.dumps(line) + "\n")
    write_text(out / "ablation.json", json.dumps(table, indent=1) + "\n")
    print(f"{'row':6s}{'clDice':>8s}  note")
    for line in table:
        score = f"{line['cldice']:.3f}" if line.get("cldice") is not None else "-"
        print(f"{line['row']:6s}{score:>8s}  {line.get('collapsed', '')}")
    print(f"table: {out / 'ablation.json'}")
    return 0


def _ended(outcome, name: str, file: str = "casgan.safetensors") -> str:
    how = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    best = f", best clDice {outcome.score:.4f} at step {outcome.best_step}" if outcome.score is not None else ""
    return f"{name}: {how} after {outcome.steps} steps{best}: {outcome.folder / file}"
