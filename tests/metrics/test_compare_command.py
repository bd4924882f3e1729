# SPDX-License-Identifier: Apache-2.0
"""The compare command and the sensitivity card."""

from __future__ import annotations

import json

import numpy as np
import pytest

from licag3d.command import status_of
from licag3d.compare import main
from licag3d.metrics.feature_space.degradations import Scene
from licag3d.metrics.feature_space.sensitivity import CLEAN, OTHER_TREE, card_table, sensitivity_card


def frames(folder, count, seed, brighter=0.0):
    import imageio.v3 as iio
    from scipy.ndimage import gaussian_filter

    folder.mkdir()
    rng = np.random.default_rng(seed)
    for k in range(count):
        image = gaussian_filter(rng.standard_normal((80, 80)), 6)
        image = 0.5 + 0.1 * image / image.std() - 0.3 * (np.abs(np.arange(80) - rng.uniform(20, 60)) < 2)
        image = image + rng.normal(0, 0.03, image.shape) + brighter
        iio.imwrite(folder / f"{k}.png", np.clip(255 * image, 0, 255).astype(np.uint8))
    return folder


def test_brighter_frames_are_further_than_others_of_the_same_kind(tmp_path, capsys):
    real, same, bright = (frames(tmp_path / n, 24, s, b) for n, s, b in (("r", 0, 0.0), ("s", 1, 0.0), ("b", 2, 0.2)))
    found = {}
    for folder in (same, bright):
        out = tmp_path / f"{folder.name}.json"
        arguments = ["--real", str(real), "--other", str(folder), "--encoder", "random:vit-mini", "--size", "64"]
        assert status_of(main, [*arguments, "--json", str(out)]) == 0
        found[folder.name] = json.loads(out.read_text())
    name = found["s"]["encoder"]
    assert name.startswith("random") and len(name.rsplit("-", 1)[1]) == 8
    fd = [found[k]["distances"][f"fd_{name}"] for k in "sb"]
    assert fd[1]["value"] > 2 * fd[0]["value"] and fd[1]["low"] > fd[1]["floor"]
    assert found["b"]["distances"][f"mmd_p_{name}"]["value"] < 0.05
    assert "95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give --real DIR and --other DIR"),
        (["--real", "none", "--other", "none"], "none"),
        (["--real", "a", "--other", "b", "--size", "8"], "--size is 8"),
        (["--sensitivity", "5"], "--sensitivity is 5"),
        (["--sensitivity", "50", "--real", "a"], "leave out --real"),
        (["--real", "a", "--other", "b", "--seed", "-1"], "--seed is -1"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert status_of(main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_too_few_frames(tmp_path, capsys):
    few = frames(tmp_path / "few", 5, 0)
    arguments = ["--real", str(few), "--other", str(few), "--encoder", "random:vit-mini"]
    assert status_of(main, arguments) == 2
    assert "5 frames that can be used; at least 20" in capsys.readouterr().err


def test_card_knows_degraded_rows_from_clean_ones():
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(60):
        without = (0.6 + 0.05 * rng.standard_normal((32, 32))).clip(0, 1).astype(np.float32)
        mask = np.zeros((32, 32), bool)
        mask[:, rng.integers(8, 24)] = True
        scenes.append(Scene(np.where(mask, 0.4 * without, without).astype(np.float32), without, mask))

    def features(images):  # darkness of the vessel, roughness, and where the vessel is
        return np.stack(
            [
                [np.sort(i.mean(0))[0], np.abs(np.diff(i, axis=0)).mean(), i.mean(0).argmin() / 32 + 1e-3 * i.mean()]
                for i in images
            ]
        )

    card = sensitivity_card(scenes, features, encoder="toy")
    ratio = {name: row["fd_toy"].value / row["fd_toy"].floor for name, row in card.items()}
    assert ratio["vessels erased, all"] > 5 * ratio[CLEAN] and ratio["blur 1.2 px"] > 5 * ratio[CLEAN]
    # The right style with the wrong vessels: what no set distance sees.
    assert ratio[OTHER_TREE] < 3 * ratio[CLEAN]
    table = card_table(card, "toy")
    assert table.count("\n") == len(card) + 1 and "another patient's vessels" in table
    with pytest.raises(ValueError, match="at least 40"):
        sensitivity_card(scenes[:30], features, encoder="toy")
