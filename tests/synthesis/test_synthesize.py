# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.synthesize``: files, marks, warnings and refusals."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from licag3d.command import BAD_INPUT, status_of
from licag3d.geometry import Camera
from licag3d.io.write_dicom_xa import write_xa
from licag3d.metrics.synthesis import view_of
from licag3d.models import virtual_contrast
from licag3d.models.casgan import CasGan, CasganConfig
from licag3d.models.virtual_contrast import contrast_seen, emptiest_frame, frame_warnings
from licag3d.synthesize import main
from licag3d.train.checkpoints import save_weights


def grey(shape=(96, 96), seed=0):
    rows, cols = np.mgrid[: shape[0], : shape[1]] / shape[0]
    noise = 0.02 * np.random.default_rng(seed).standard_normal(shape)
    return (0.4 + 0.2 * rows + 0.1 * np.sin(4 * cols) + noise).clip(0, 1)


def write(path, image):
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(path)
    return str(path)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_files_of_a_picture(tmp_path, weights, capsys):
    file, out = write(tmp_path / "a.png", grey()), tmp_path / "out"
    assert status_of(main, [file, "--out", str(out), "--weights", weights]) == 0
    said = capsys.readouterr().out
    assert "not seen. Not for diagnosis" in said and "wrote 4 files" in said
    assert sorted(p.name for p in out.iterdir()) == [
        "a_angiogram.png",
        "a_compare.png",
        "a_uncertainty.png",
        "a_vessel.png",
    ]
    before, after, vessel = pixels(file), pixels(out / "a_angiogram.png"), pixels(out / "a_vessel.png")
    assert after.shape == vessel.shape == before.shape
    assert (after <= before).all() and (after < before).any()
    assert np.array_equal(after[vessel < 100], before[vessel < 100])
    for name in ("angiogram", "vessel", "uncertainty", "compare"):
        assert "Not for diagnosis" in Image.open(out / f"a_{name}.png").text["Description"]


def xa_file(path, frames, bits=8):
    camera = Camera(30.0, 10.0, 1000.0, 750.0, 0.4, 0.4, *frames.shape[1:])
    write_xa(path, frames, camera, bits=bits, frame_time_ms=66.0 if len(frames) > 1 else None, identity=("test",))
    return str(path)


def test_dicom_in_dicom_out_is_a_derived_marked_object(tmp_path, weights):
    import pydicom

    from licag3d.io.views import read_views

    # Contrast fills frames 3 to 5: one of the others is to be taken.
    frames = np.repeat(np.rint(255 * grey((128, 128)))[None], 6, 0)
    line = np.abs(np.arange(128)[:, None] - 64 - 20 * np.sin(np.arange(128) / 20)[None]) < 3
    frames[3:, line] *= 0.5
    source = tmp_path / "cine.dcm"
    xa_file(source, frames.astype(np.uint8))
    data = pydicom.dcmread(source)
    data.PatientName, data.PatientID = "Doe^Jane", "4711"
    data.save_as(source)
    out = tmp_path / "out"
    assert status_of(main, [str(source), "--out", str(out), "--weights", weights]) == 0
    made = pydicom.dcmread(out / "cine_angiogram.dcm")
    assert made.ImageType[0] == "DERIVED" and str(made.PatientName) == "SYNTHETIC^CONTRAST"
    assert "Synthetic contrast" in made.DerivationDescription and "ot for diagnosis" in made.SeriesDescription
    assert made.ContrastBolusAgent == "none (synthetic)" and made.PatientIdentityRemoved == "YES"
    assert b"Doe" not in (out / "cine_angiogram.dcm").read_bytes()
    assert b"4711" not in (out / "cine_angiogram.dcm").read_bytes()
    (view,), _ = read_views([str(out / "cine_angiogram.dcm")])
    assert view.camera.primary_deg == 30 and view.camera.spacing_col_mm == 0.4
    # The picture is that of a frame without contrast, darkened.
    shown = pixels(out / "cine_angiogram.png")
    assert abs(np.median(shown[line] / frames[0][line]) - 1) < 0.35 and (shown <= frames[0] + 1).all()
    again = tmp_path / "again"
    assert status_of(main, [str(source), "--out", str(again), "--weights", weights]) == 0
    assert (again / "cine_angiogram.dcm").read_bytes() == (out / "cine_angiogram.dcm").read_bytes()


def test_emptiest_frame_is_in_the_trough():
    view = replace(view_of(grey(), 0.3), scores=np.array([5, 1, 1.1, 1, 8, 9, 0.9, 9], np.float32))
    assert emptiest_frame(view) == 2  # one low frame between filled ones is noise
    assert emptiest_frame(view_of(grey(), 0.3)) is None


def test_frames_that_are_refused(tmp_path, weights, capsys):
    out = ["--out", str(tmp_path / "out"), "--weights", weights]
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    write(tmp_path / "blank.png", np.full((64, 64), 0.5))
    clipped = grey((64, 64))
    clipped[np.random.default_rng(1).random(clipped.shape) < 0.6] = 1.0
    write(tmp_path / "white.png", clipped)
    for name, words in (("colour", "coloured"), ("blank", "blank"), ("white", "black or white")):
        assert status_of(main, [str(tmp_path / f"{name}.png"), *out]) == BAD_INPUT
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    file = write(tmp_path / "a.png", grey())
    assert status_of(main, [file, "--out", str(tmp_path / "out"), "--weights", "missing.safetensors"]) == BAD_INPUT
    assert status_of(main, [file, "--out", str(tmp_path / "out"), "--weights", "segmentor"]) == BAD_INPUT
    save_weights(tmp_path / "other.safetensors", torch.nn.Linear(2, 2), {"model": "segmentor"})
    other = str(tmp_path / "other.safetensors")
    assert status_of(main, [file, "--out", str(tmp_path / "out"), "--weights", other]) == BAD_INPUT
    assert not (tmp_path / "out").exists()


def test_clipped_and_turned_frames_are_warned_of():
    image = grey().astype(np.float32)
    image[:12] = 1.0
    view = replace(view_of(image, 0.3), file="a.png")
    assert any("wider window" in text for text in frame_warnings(view))
    turned = replace(view_of(grey(), 0.3), notes=("The vessels are bright in this file: the grey values were turned.",))
    assert any("--polarity dark" in text for text in frame_warnings(turned))
    assert frame_warnings(view_of(grey(), 0.3)) == ()


def test_burnt_in_text_stays_as_it_is(tmp_path, weights):
    from PIL import ImageDraw

    marked = Image.fromarray(np.rint(255 * grey((512, 512))).astype(np.uint8))
    ImageDraw.Draw(marked).text((16, 18), "LAO 30 CRA 20", fill=255, font_size=24)
    text = np.asarray(marked) > 230
    marked.save(tmp_path / "marked.png")
    assert status_of(main, [str(tmp_path / "marked.png"), "--out", str(tmp_path / "out"), "--weights", weights]) == 0
    made = pixels(tmp_path / "out" / "marked_angiogram.png")
    vessel = pixels(tmp_path / "out" / "marked_vessel.png")
    assert text.sum() > 100 and (made[text] == np.asarray(marked)[text]).all() and (vessel[text] == 0).all()
    assert (made < np.asarray(marked)).any()  # vessels are drawn elsewhere


def test_inverted_frames_are_turned_over_where_asked(tmp_path, weights, capsys):
    file = write(tmp_path / "a.png", grey())
    negative = write(tmp_path / "b.png", 1 - grey())
    out = [tmp_path / "plain", tmp_path / "turned"]
    assert status_of(main, [file, "--out", str(out[0]), "--weights", weights, "--polarity", "dark"]) == 0
    assert "turned over" not in capsys.readouterr().out
    assert status_of(main, [negative, "--out", str(out[1]), "--weights", weights, "--polarity", "bright"]) == 0
    assert "turned over" not in capsys.readouterr().out  # it was asked for
    plain, turned = pixels(out[0] / "a_angiogram.png"), pixels(out[1] / "b_angiogram.png")
    assert np.abs(plain - turned).mean() < 1.5 and np.abs(plain - pixels(negative)).mean() > 20


def phantom_views(number, kappas):
    """A phantom frame of 384 px and views of it with some of the contrast left, by kappa."""
    from licag3d.data.phantom_frames import case_moments, contrast_free_image, render_moment
    from licag3d.io.collimator import valid_area

    (moment,) = case_moments(number, views=1, rows=384)
    frame = render_moment(moment)

    def view(picture):
        unit = picture.astype(np.float32) / 255
        return replace(view_of(unit, frame.mm_per_pixel, valid_area(unit)), file="frame.png")

    made = {kappa: view(contrast_free_image(moment, kappa)) for kappa in kappas if kappa < 1}
    return frame, made | {1.0: view(frame.image)}


def test_contrast_that_is_there_already_is_seen():
    """On phantom frames of 512 px; the threshold was chosen on validation frames (docs/synthesis.md)."""
    _, views = phantom_views(31, (0.1,))
    with_contrast, without = views[1.0], views[0.1]
    assert contrast_seen(with_contrast)[1] > virtual_contrast.CONTRAST_MM > contrast_seen(without)[1] + 10
    assert any("hold contrast already" in text for text in frame_warnings(with_contrast))
    assert not any("hold contrast already" in text for text in frame_warnings(without))


def test_the_embedded_network_draws_what_little_contrast_shows_and_next_to_nothing_without():
    frame, views = phantom_views(33, (0.0, 0.3))
    synthesiser = virtual_contrast.load_synthesiser()
    drawn = {kappa: virtual_contrast.draw_contrast(views[kappa], synthesiser) for kappa in (0.0, 0.3)}
    none, some = (drawn[kappa].synthesis for kappa in (0.0, 0.3))
    dice = 2 * (some.mask & frame.mask).sum() / (some.mask.sum() + frame.mask.sum())
    assert dice > 0.35 and none.mask.sum() < 0.05 * frame.mask.sum()
    assert some.vessel[frame.mask].mean() > 3 * some.vessel[~frame.mask].mean()
    assert abs(some.expected_dice - dice) < 0.15  # the promise is kept
    assert (some.angiogram <= views[0.3].image).all() and np.median(some.attenuation[some.mask & frame.mask]) > 0.1
    assert any("no vessel was likely" in text or "are a guess" in text for text in drawn[0.0].warnings)


def test_the_command_needs_no_weights(tmp_path, capsys):
    file, out = write(tmp_path / "a.png", grey((256, 256))), tmp_path / "out"
    assert status_of(main, [file, "--out", str(out), "--pixel-spacing", "0.4"]) == 0
    said = capsys.readouterr().out
    # A ramp without any vessel: nothing is drawn, and it is said.
    assert "no vessel was likely enough" in said and "drawn on 0.0 %" in said
    assert np.array_equal(pixels(out / "a_angiogram.png"), pixels(file))


def test_casgan_weights_serve_too(tmp_path, capsys):
    torch.manual_seed(1)
    model = CasGan(CasganConfig(channels=4, patch_channels=4, blocks=1))
    file = tmp_path / "casgan.safetensors"
    save_weights(file, model, {"model": "casgan", "config": asdict(model.config), "working_mm": 0.4})
    picture = write(tmp_path / "a.png", grey())
    assert status_of(main, [picture, "--out", str(tmp_path / "out"), "--weights", str(file)]) == 0
    assert pixels(tmp_path / "out" / "a_angiogram.png").shape == (96, 96)
    capsys.readouterr()
    for wrong in (1e-6, float("nan"), "0.4", None):  # would make the frame a million times as large
        save_weights(file, model, {"model": "casgan", "config": asdict(model.config), "working_mm": wrong})
        assert status_of(main, [picture, "--out", str(tmp_path / "no"), "--weights", str(file)]) == 2
        assert "no pixel size" in capsys.readouterr().err


def test_real_frame_before_contrast(shared_data, tmp_path, weights):
    source = shared_data / "dicom" / "XA1_RLE.dcm"
    assert status_of(main, [str(source), "--out", str(tmp_path), "--weights", weights]) == 0
    assert (tmp_path / "XA1_RLE_angiogram.png").is_file()


def test_views_for_a_reconstruction_are_synthetic_and_say_so(tmp_path, weights):
    from licag3d.errors import InputError
    from licag3d.models.virtual_contrast import load_synthesiser, synthesised_views

    files = [write(tmp_path / "a.png", grey()), write(tmp_path / "b.png", grey(seed=1))]
    reading = {"angles": [(-30, 0), (30, 0)], "sid_mm": 1000, "sod_mm": 750, "pixel_spacing_mm": 0.4}
    views, notes = synthesised_views(files, load_synthesiser(weights), **reading)
    assert [view.camera.primary_deg for view in views] == [-30, 30]
    assert (views[0].image <= grey() + 0.01).all() and (views[0].image < grey() - 0.02).any()
    assert "So is the tree" in notes[0]
    nothing = load_synthesiser(weights)
    with pytest.raises(InputError, match="nothing to reconstruct"):
        synthesised_views(files, lambda view: replace(nothing(view), expected_dice=float("nan")), **reading)
