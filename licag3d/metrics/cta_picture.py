# SPDX-License-Identifier: Apache-2.0
"""One picture per view: where the vessels of the CTA fall, and where the reconstruction puts them."""

from __future__ import annotations

import io

import numpy as np

from licag3d.metrics.cta import SILHOUETTE_MM, CtaView

_CTA_RGB, _PRED_RGB = (64, 224, 255), (255, 96, 64)
_LEGEND_PX = 30


def cta_picture(view: CtaView) -> bytes:
    """PNG: path length through the vessels of the CTA in cyan and of the reconstruction in red, white where both agree;
    to the left, where the input frame is known, the frame with the outline of the vessels of the CTA."""
    from PIL import Image, ImageDraw, ImageFont

    span = max(float(view.cta_path_mm.max()), 1e-6)
    # The square root shows thin vessels beside thick ones.
    cta, pred = (np.sqrt(np.clip(path / span, 0, 1))[..., None] for path in (view.cta_path_mm, view.pred_path_mm))
    overlay = 255 * np.clip(cta * np.array([0, 1, 1.0]) + pred * np.array([1.0, 0, 0]), 0, 1)
    panels = [overlay.astype(np.uint8)]
    if view.frame is not None:
        panels.insert(0, _outlined(view.frame, view.cta_path_mm >= SILHOUETTE_MM))
    strip = np.concatenate(panels, axis=1)
    scale = 1 if strip.shape[1] >= 900 else 2
    base = Image.fromarray(strip).resize((strip.shape[1] * scale, strip.shape[0] * scale), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (base.width, base.height + _LEGEND_PX), (16, 20, 26))
    canvas.paste(base)
    draw, font, x = ImageDraw.Draw(canvas), ImageFont.load_default(14), 10
    legend = [(_CTA_RGB, "CTA vessels"), (_PRED_RGB, "reconstruction"), ((255, 255, 255), "both")]
    ssim, empty = view.scores["ssim_vessel"], view.scores["ssim_vessel_empty"]
    legend.append(((160, 168, 178), f"SSIM near vessels {ssim:.3f} (empty volume {empty:.3f})"))
    for color, words in legend:
        draw.text((x, base.height + _LEGEND_PX // 2), words, fill=color, font=font, anchor="lm")
        x += int(draw.textlength(words, font=font)) + 22
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _outlined(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    grey = (255 * np.clip(np.nan_to_num(frame), 0, 1)).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    picture[mask & ~binary_erosion(mask)] = _CTA_RGB
    return picture
