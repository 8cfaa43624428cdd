"""Frames as a GIF, by Pillow, or as an MP4 (H.264), by imageio-ffmpeg where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rwm_fast.app.sheets import Values
from rwm_fast.disk import writable, write_file
from rwm_fast.errors import UserError

ANIMATED = (".gif", ".mp4")
_SAMPLES = 200_000  # pixels that choose a GIF's colours
_COLOURS = 255  # the 256th is that of a pixel that stays as it was


def check_animation(path: str | Path) -> None:
    """UserError, before any work, where an animation cannot be written to `path`."""
    if Path(path).suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"{path} cannot be written: MP4 needs a writer: pip install imageio-ffmpeg")
    writable(path)


def write_animation(frames: Sequence[Values], path: str | Path, rate: float = 12.0) -> None:
    """Write frames of one size, `rate` a second; the extension says the format.

    A GIF has one palette of 255 colours for all frames and no dither, so that what stands still
    does not flicker: it is left out of the frames after the first. It goes on for ever. MP4 knows
    even sizes alone: an odd row or column is left out. UserError when it cannot be written.
    """
    check_animation(path)
    write = _mp4 if Path(path).suffix.lower() == ".mp4" else _gif
    write_file(path, lambda temporary: write(frames, temporary, rate))


def _gif(frames: Sequence[Values], path: Path, rate: float) -> None:
    pixels = np.concatenate([frame.reshape(-1, 3) for frame in frames])
    some = np.ascontiguousarray(pixels[:: -(-len(pixels) // _SAMPLES)][None])
    palette = Image.fromarray(some).quantize(_COLOURS, method=Image.Quantize.MEDIANCUT)
    plain = Image.Dither.NONE  # any other lets a pixel's colour depend on its neighbours' changes
    first, *others = (Image.fromarray(f).quantize(palette=palette, dither=plain) for f in frames)
    duration = round(1000 / rate)
    options = dict(save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
    first.save(path, "GIF", **options)


def _mp4(frames: Sequence[Values], path: Path, rate: float) -> None:
    from imageio_ffmpeg import write_frames  # an extra

    height, width = (n // 2 * 2 for n in frames[0].shape[:2])
    if not height or not width:
        raise UserError("an MP4 needs pictures of at least 2 x 2 pixels")
    writer = write_frames(
        str(path),
        (width, height),
        fps=rate,
        codec="libx264",
        quality=8,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=["-f", "mp4", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame[:height, :width]))
    finally:
        writer.close()
