# SPDX-License-Identifier: Apache-2.0
"""Masked pre-training of the angiogram encoder: VasoMIM, or plain MAE with ``--plain``. See docs/vasomim.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from licag3d.errors import InputError
from licag3d.train.loop import LoopSettings, Outcome, add_loop_flags, load_into, load_weights, settings_of, train

if TYPE_CHECKING:
    from licag3d.data.crops import CropStream
    from licag3d.models.vessel_masking import TinySegmentor
    from licag3d.models.vit import EncoderConfig

VALIDATION_CROPS = 128


@dataclass(frozen=True)
class MaskingSettings:
    """What is hidden and what is asked.

    Args:
        hidden: gamma, share of hidden patches.
        beta_first, beta_last: share of the hidden patches drawn by the vascular distribution, first and last step. More
            than 0.5 at the end harms (ablation of arXiv 2508.10794).
        eta: weight of the vesselness against the segmentor in the guidance.
        consistency: whether the anatomical consistency loss is used; without it there is no segmentor at all.
        normalised: targets of mean 0 and variance 1 per patch.
        spread_floor: added to the standard deviation of a patch in that (grey values 0..1, squares added): flat patches
            of quantum noise weigh less.
        segmentor_steps: steps of training the segmentor S on rough vessel masks.
    """

    hidden: float = 0.5
    beta_first: float = 0.0
    beta_last: float = 0.5
    eta: float = 0.5
    consistency: bool = True
    normalised: bool = True
    spread_floor: float = 1e-3
    segmentor_steps: int = 400

    def __post_init__(self) -> None:
        for name, low, high in (("hidden", 0.05, 0.95), ("beta_first", 0, 1), ("beta_last", 0, 1), ("eta", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name.replace('_', ' ')} is {value}; give {low} to {high}")
        if not 1e-4 <= self.spread_floor <= 1:
            raise InputError(f"spread floor is {self.spread_floor}; give 0.0001 to 1 (of the grey range)")
        if self.segmentor_steps < 1:
            raise InputError(f"segmentor steps is {self.segmentor_steps}; give at least 1")


#: Plain masked autoencoding: random masks, pixels only.
PLAIN = MaskingSettings(beta_first=0.0, beta_last=0.0, consistency=False)


def add_flags(parser) -> None:
    """The flags of ``python -m licag3d.train vasomim``."""
    add_loop_flags(
        parser, steps=20_000, batch=64, rate=1e-3, warmup=300, decay=0.05, save_every=200, validate_every=500
    )
    sizes = "vit-mini, vit-3m, vit-3m-224, vit-s, vit-s-8 or vit-b"
    parser.add_argument("--size", default="vit-3m", metavar="NAME", help=sizes)
    text = "best.safetensors of an earlier run of the same size, whose weights to begin with"
    parser.add_argument("--start", metavar="FILE", help=text)
    parser.add_argument("--ema", type=float, default=0.998, help="share of the old average of the weights per step")
    parser.add_argument("--image-px", type=int, metavar="PX", help="side of the training crops, instead of the size's")
    parser.add_argument("--patch-px", type=int, metavar="PX", help="side of a patch, instead of the size's")
    data = parser.add_argument_group("data, at least one of them")
    data.add_argument("--pool", metavar="DIR", help="pool of phantom frames (python -m licag3d.data.phantom_frames)")
    data.add_argument("--frames", nargs="+", metavar="DIR", help="folders with PNG, TIFF, JPEG or DICOM XA frames")
    data.add_argument("--phantom-share", type=float, default=0.5, help="share of phantom crops where both are given")
    group = parser.add_argument_group("masking")
    group.add_argument("--plain", action="store_true", help="plain MAE: random masks, no vessel guidance at all")
    group.add_argument("--hidden", type=float, default=0.5, help="share of hidden patches")
    group.add_argument("--beta", type=float, default=0.5, help="guided share of them at the last step, from 0")
    group.add_argument("--eta", type=float, default=0.5, help="weight of vesselness against the segmentor")
    text = "added to the spread of a patch when it is normalised, of the grey range: flat noisy patches weigh less"
    group.add_argument("--spread-floor", type=float, default=1e-3, help=text)
    group.add_argument(
        "--no-consistency", action="store_true", help="guided masks, but no segmentor and no consistency"
    )
    data.add_argument(
        "--priors",
        metavar="DIR",
        help="folder for vesselness, to be shared by runs on the same frames; default OUT/priors",
    )
    group.add_argument("--segmentor-steps", type=int, default=400, help="steps of training that segmentor beforehand")


def main(arguments) -> int:
    """Prepare the data, train the segmentor S, then the encoder; resumable at any moment."""
    from licag3d.models.vit import config_of

    if not 0 <= arguments.ema < 1:
        raise InputError(f"--ema is {arguments.ema}; give 0 up to below 1")
    settings = replace(settings_of(arguments), ema=arguments.ema)
    if not arguments.pool and not arguments.frames:
        raise InputError("no data: give --pool DIR, --frames DIR or both")
    if not 0 < arguments.phantom_share < 1:
        raise InputError(f"--phantom-share is {arguments.phantom_share}; give more than 0 and less than 1")
    changes = {k: v for k, v in (("image_px", arguments.image_px), ("patch_px", arguments.patch_px)) if v is not None}
    config = config_of(arguments.size, **changes)
    floor = arguments.spread_floor
    masking = replace(PLAIN, hidden=arguments.hidden, spread_floor=floor) if arguments.plain else MaskingSettings(
        hidden=arguments.hidden, beta_last=arguments.beta, eta=arguments.eta, spread_floor=floor,
        consistency=not arguments.no_consistency, segmentor_steps=arguments.segmentor_steps)  # fmt: skip
    outcome = pretrain(
        arguments.out, config, masking, settings, pool=arguments.pool, folders=arguments.frames or (),
        phantom_share=arguments.phantom_share, resume=arguments.resume, priors=arguments.priors,
        start=arguments.start)  # fmt: skip
    state = "finished" if outcome.finished else "stopped at the time limit; go on with --resume"
    print(f"{state} after {outcome.steps} steps: {outcome.folder / 'encoder.safetensors'}")
    return 0


def pretrain(
    out,
    config: EncoderConfig,
    masking: MaskingSettings,
    settings: LoopSettings,
    *,
    pool: str | Path | None = None,
    folders: Sequence[str | Path] = (),
    phantom_share: float = 0.5,
    resume: bool = False,
    priors: str | Path | None = None,
    start: str | Path | None = None,
) -> Outcome:
    """Pre-train an encoder, from new weights or those of an earlier run (``start``).

    The run folder gets ``encoder.safetensors`` and ``reconstruction.png`` beside the files of
    :mod:`licag3d.train.loop`, and ``frames/`` with the prepared own frames and the list of what was skipped.

    Raises:
        InputError: no usable frames, a run or ``start`` that does not fit, see :func:`licag3d.train.loop.train`.
    """
    import torch

    from licag3d.io.atomic import check_output_folder
    from licag3d.models.vasomim import MaskedAutoencoder, state_hash, write_encoder_file

    out = check_output_folder(out)
    if (out / "config.json").exists() and not resume:
        raise InputError(f"{out} holds a run already: give --resume to go on with it, or another --out")
    if config.image_px % 8:
        raise InputError(f"image_px is {config.image_px}; the segmentor needs a multiple of 8")
    priors = check_output_folder(priors or out / "priors")
    priors.mkdir(parents=True, exist_ok=True)
    data = open_data(out, pool, folders, phantom_share, config.image_px, settings.seed, priors)
    segmentor = None
    if masking.consistency:
        segmentor = train_segmentor(out / "segmentor", data, masking, settings)
    data.restart()
    torch.manual_seed(settings.seed)
    model = MaskedAutoencoder(config)
    facts = {"model": "vasomim", "encoder": asdict(config), "masking": asdict(masking), "data": data.facts}
    facts["start"] = None
    if start is not None:
        load_into(model, load_weights(start)[0], str(start))
        facts["start"] = state_hash(model.state_dict())
    outcome = train(
        model,
        settings,
        out,
        make_batch=lambda step: data.train.batch(step, settings.batch),
        loss=lambda net, batch, step: _loss(net, batch, step, config, masking, settings, segmentor),
        validate=lambda average: _validate(average, data, config, masking, settings),
        config=facts,
        resume=resume,
        prepare=data.prepare,
    )
    tensors, _ = load_weights(out / "best.safetensors")
    load_into(model, tensors, str(out / "best.safetensors"))
    model.to("cpu").eval()
    write_encoder_file(out / "encoder.safetensors", model.encoder)
    _write_picture(out / "reconstruction.png", model, data, config, masking)
    return outcome


class PretrainingData:
    """Streams for training and validation, and the pools behind them, which may be growing."""

    def __init__(self, train: CropStream, validation: CropStream, pools: Sequence, facts: dict) -> None:
        self.train, self.validation, self.pools, self.facts = train, validation, list(pools), facts
        self._started = False

    def prepare(self, step: int, state: dict) -> dict:
        """For :func:`licag3d.train.loop.train`: lets new frames in at checkpoints alone and remembers how many were
        known, so that a resumed run meets the same frames."""
        if not self.pools:
            return state
        # A resumed run begins with what its checkpoint knew.
        known = int(state["pool_frames"]) if "pool_frames" in state and not self._started else None
        self._started = True
        return {**state, "pool_frames": [pool.refresh(known) for pool in self.pools][0]}

    def restart(self) -> None:
        """Before another run of the loop with the same data."""
        self._started = False


def open_data(
    out: Path, pool, folders, phantom_share: float, image_px: int, seed: int, priors: Path | None = None
) -> PretrainingData:
    """Open the pool, prepare the folders (once; into ``out/frames``), and hold out patients for validation."""
    from licag3d.data.crops import CropStream, PoolSource

    training, held, shares, pools, facts = [], [], [], [], {}
    if pool:
        from licag3d.data.phantom_frames import PhantomPool

        opened = PhantomPool(pool)
        pools = [PoolSource(opened), PoolSource(opened, validation=True)]
        if not len(pools[0]):
            raise InputError(f"{pool}: the pool holds no training frames yet; render more cases first")
        training.append(pools[0])
        shares.append(phantom_share if folders else 1.0)
        if len(pools[1]):
            held.append(pools[1])
        facts["pool"] = True
    if folders:
        from licag3d.data.frames import describe, prepare_frames

        bank = prepare_frames(folders, out / "frames")
        print(f"{describe(bank)}\n  list: {bank.folder / 'skipped.txt'}", file=sys.stderr)
        inside, outside = bank.split(validation=0.05, seed=seed)
        training.append(inside)
        shares.append(1 - phantom_share if pool else 1.0)
        if len(outside):
            held.append(outside)
        facts["frames"] = {"count": len(bank), "patients": bank.groups, "fingerprint": bank.fingerprint}
    validation = CropStream(held or training, image_px, seed + 7, priors=priors)
    stream = CropStream(training, image_px, seed, shares=shares, priors=priors)
    return PretrainingData(stream, validation, pools, facts)


def train_segmentor(folder: Path, data: PretrainingData, masking: MaskingSettings, settings: LoopSettings):
    """S, trained on rough vessel masks and frozen; read from ``folder`` where it is finished already."""
    import torch

    from licag3d.models.vessel_masking import TinySegmentor, segmentation_loss

    torch.manual_seed(settings.seed)
    segmentor = TinySegmentor()
    finished = folder / "best.safetensors"
    if not finished.is_file():
        own = replace(settings, steps=masking.segmentor_steps, minutes=0.0, batch=min(32, settings.batch), rate=2e-3,
                      warmup=min(50, masking.segmentor_steps // 4), decay=1e-4, ema=0.98)  # fmt: skip

        def loss(net, batch, step):
            return segmentation_loss(net(batch["images"]), batch["vesselness"]), {}

        train(segmentor, own, folder, make_batch=lambda step: data.train.batch(2**40 + step, own.batch), loss=loss,
              config={"model": "tiny segmentor", "data": data.facts}, resume=(folder / "config.json").exists(),
              prepare=data.prepare)  # fmt: skip
    tensors, _ = load_weights(finished)
    load_into(segmentor, tensors, str(finished))
    return segmentor.to(settings.device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _loss(model, batch, step: int, config, masking: MaskingSettings, settings, segmentor: TinySegmentor | None):
    import torch

    from licag3d.models import vessel_masking as vm

    images, vesselness, p = batch["images"], batch["vesselness"], config.patch_px
    wanted = None
    if segmentor is not None:
        with torch.no_grad():
            wanted = segmentor(images)
    beta = vm.guided_share(step, settings.steps, masking.beta_first, masking.beta_last)
    distribution = vm.vascular_distribution(vm.guidance_map(vesselness, wanted, masking.eta), p)
    hidden = round(masking.hidden * config.patches)
    mask = vm.draw_mask(distribution, hidden=hidden, beta=beta)
    losses = vm.masked_losses(model(images, mask), images, mask, p, segmentor=segmentor, wanted=wanted,
                              normalised=masking.normalised, floor=masking.spread_floor)  # fmt: skip
    numbers = {"reconstruction": losses.reconstruction.detach(), "consistency": losses.consistency.detach(),
               "vessel_share": vm.vessel_share(vesselness, mask, p), "beta": beta}  # fmt: skip
    return losses.total, numbers


def _validate(average, data: PretrainingData, config, masking: MaskingSettings, settings: LoopSettings) -> dict:
    """Reconstruction of held-out crops under the same random masks, everywhere and in vessel patches alone."""
    import torch

    from licag3d.models import vessel_masking as vm

    errors, vessel_errors, count = [], [], 32
    for number in range(max(1, VALIDATION_CROPS // count)):
        batch = data.validation.batch(number, count, augment=False)
        images = batch["images"].to(settings.device)
        vesselness = batch["vesselness"].to(settings.device)
        generator = torch.Generator().manual_seed(number)
        flat = torch.ones(count, config.patches)
        mask = vm.draw_mask(flat, hidden=round(masking.hidden * config.patches), beta=0.0, generator=generator)
        mask = mask.to(settings.device)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            predicted = average(images, mask)
        vessel = vm.patchify(vesselness, config.patch_px).mean(-1) >= 0.05
        options = {"normalised": masking.normalised, "floor": masking.spread_floor}
        for kept, chosen in ((errors, mask), (vessel_errors, mask & vessel)):
            kept.append(float(vm.reconstruction_loss(predicted, images, chosen, config.patch_px, **options)))
    loss = sum(errors) / len(errors)
    return {"score": -loss, "reconstruction": loss, "vessel_reconstruction": sum(vessel_errors) / len(vessel_errors)}


def _write_picture(path: Path, model, data: PretrainingData, config, masking: MaskingSettings) -> None:
    """Six held-out crops: as they are, what the encoder saw, and the hidden patches filled in.

    Filled patches have the brightness and contrast of the true ones (the network predicts their pattern alone).
    """
    import io

    import imageio.v3 as iio
    import numpy as np
    import torch

    from licag3d.io.atomic import write_bytes
    from licag3d.models import vessel_masking as vm

    batch = data.validation.batch(0, 6, augment=False)
    images, p = batch["images"], config.patch_px
    distribution = vm.vascular_distribution(batch["vesselness"], p)
    mask = vm.draw_mask(distribution, hidden=round(masking.hidden * config.patches), beta=masking.beta_last,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    with torch.no_grad():
        filled = vm.paste_visible(
            model(images, mask).float(), images, mask, p, normalised=masking.normalised, floor=masking.spread_floor
        )
    seen = vm.unpatchify(torch.where(mask[..., None], 0.5, vm.patchify(images, p)), p, config.grid)
    rows = [torch.cat(list(x[:, 0]), dim=1) for x in (images, seen, filled, batch["vesselness"])]
    sheet = (torch.cat(rows).clamp(0, 1).numpy() * 255).astype(np.uint8)
    buffer = io.BytesIO()
    iio.imwrite(buffer, sheet, extension=".png")
    write_bytes(path, buffer.getvalue())


def read_curves(folder: Path) -> list[dict]:
    """Records of ``curves.jsonl`` of a run, in order.

    Raises:
        InputError: no run there.
    """
    try:
        return [json.loads(line) for line in (Path(folder) / "curves.jsonl").read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no curves of a run ({error})") from None
