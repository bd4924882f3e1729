# SPDX-License-Identifier: Apache-2.0
"""The distances of the general literature, FID and LPIPS, for users who bring the weights: none are downloaded here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from licag3d.errors import InputError

_MOST_BYTES = 2**30


def inception_fid(real: np.ndarray, other: np.ndarray, weights: str | Path, *, batch: int = 16) -> float:
    """Standard FID through torchmetrics with the user's file of Inception weights (the TensorFlow port).

    Args:
        real: ``(n, rows, cols)`` float, 0..1; repeated to three channels, as that network wants colour photographs.
        other: ``(m, rows, cols)``.
        weights: file ``pt_inception-2015-12-05-6726825d.pth`` of torch-fidelity.

    Raises:
        InputError: torchmetrics or torch-fidelity is not installed, or the file is not there.
    """
    path = _weights_file(weights, "FID", "pt_inception-2015-12-05-6726825d.pth of torch-fidelity")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=2048, normalize=True, feature_extractor_weights_path=str(path))
    except ModuleNotFoundError as error:
        raise InputError(
            "FID needs torchmetrics and torch-fidelity: pip install torchmetrics torch-fidelity"
        ) from error
    except (RuntimeError, KeyError, EOFError, ValueError) as error:
        raise InputError(f"{path.name} does not hold the Inception weights of torch-fidelity") from error
    import torch

    for images, is_real in ((real, True), (other, False)):
        for start in range(0, len(images), batch):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + batch], np.float32))
            metric.update(part.clamp(0, 1)[:, None].expand(-1, 3, -1, -1), real=is_real)
    return float(metric.compute())


def lpips_distance(a: np.ndarray, b: np.ndarray, weights: str | Path, *, net: str = "alex") -> np.ndarray:
    """LPIPS of pairs of frames through the lpips package with the user's file of backbone weights.

    Args:
        a: ``(n, rows, cols)`` float, 0..1.
        b: the same shape.
        weights: torchvision's state dictionary of the backbone, for example ``alexnet-owt-7be5be79.pth``.
        net: ``alex``, ``vgg`` or ``squeeze``: the backbone of the file.

    Returns:
        ``(n,)``.

    Raises:
        InputError: lpips is not installed, or the file is not that of the backbone.
    """
    path = _weights_file(weights, "LPIPS", "torchvision's file of the backbone, for example alexnet-owt-7be5be79.pth")
    import torch

    if net not in ("alex", "vgg", "squeeze"):
        raise InputError(f"LPIPS backbone is '{net}'; choose alex, vgg or squeeze")
    lpips = _import_lpips()
    # `pnet_rand` builds the backbone without asking the network for its weights; they are put in below.
    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        _fill_backbone(model.net, state)
    except Exception as error:
        raise InputError(f"{path.name} does not hold the weights of the {net} backbone") from error
    one, two = (torch.from_numpy(np.ascontiguousarray(x, np.float32))[:, None].expand(-1, 3, -1, -1) for x in (a, b))
    with torch.no_grad():
        return model(one, two, normalize=True).flatten().numpy()


def _fill_backbone(backbone, state: dict) -> None:
    """Copy ``features.N.*`` into the slices of lpips, which keep torchvision's numbering."""
    wanted = backbone.state_dict()
    found = {name: state["features." + name.split(".", 1)[1]] for name in wanted}
    backbone.load_state_dict(found)


def _weights_file(weights: str | Path, metric: str, which: str) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"{metric} needs a weights file, and {path} is none; give {which}")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path.name} has {path.stat().st_size} bytes; at most {_MOST_BYTES} are read")
    return path


def _import_lpips():
    import sys

    import torch

    try:
        if "torchvision" not in sys.modules and not torch.cuda.is_available():
            # Beside a CPU-only torch, torchvision 0.28 registers fakes for two operators that it then lacks.
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, name):
                    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)
        import lpips
    except (ImportError, RuntimeError) as error:
        raise InputError(
            "LPIPS needs lpips and a torchvision that fits torch: pip install lpips torchvision"
        ) from error
    return lpips


#: A library of operators lives as long as its object.
_kept: list = []
