"""Damaged and made-up files against everything that reads files.

    python .ci/fuzz_files.py --inputs 100000 --out runs/fuzz-files.json     # eight minutes
    python .ci/fuzz_files.py --inputs 500                                   # seconds

Inputs are pictures, masks, zips, tar shards and their index, config.json, log.jsonl, states and
weights: good ones of every format, in which bytes are changed, cut out, doubled or exchanged with
those of others. Each must end as it should (a result, or the package's own error) within `SECONDS`
of computing; at the end this process may not have grown by more than `GROWTH_MB`. Anything else is
printed, and the file is kept. Input k is the same in every run of one seed; exit status 1 if
something was found.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rwm_fast.config import PRESETS, Config
from rwm_fast.data.decode import decode, load_picture, picture_size, read_mask, save_image
from rwm_fast.data.deep import write_png
from rwm_fast.data.formats import BadImageError
from rwm_fast.data.packing import Packing, pack
from rwm_fast.data.shards import INDEX
from rwm_fast.errors import UserError
from rwm_fast.models import Encoder, Generator, RegionEditor, save_weights
from rwm_fast.training.checkpoint import Checkpoints
from rwm_fast.training.stats import JsonLines

SECONDS = 20  # of computing for one input; of waiting ten times as many
GROWTH_MB = 1000
EXPECTED = (UserError, BadImageError)
Reader = Callable[[Path], object]


class Hang(BaseException):
    """Raised by the clock, so that no reader takes it for damage."""


class Numbers:
    """A network's stand-in: what a state file holds."""

    def __init__(self) -> None:
        self.values = {"a": torch.arange(6.0), "b": {"c": torch.ones(3)}, "n": 3}

    def state_dict(self) -> dict:
        return self.values

    def load_state_dict(self, state: dict) -> None:
        if state.keys() != self.values.keys():
            raise UserError("state: expected a, b and n")


# ---- good files


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep_tiff(values: np.ndarray) -> bytes:
    """A TIFF file of 16 bits a channel, which Pillow writes none of."""
    h, w, c = values.shape
    data = values.astype("<u2").tobytes()
    tags = [(256, w), (257, h), (259, 1), (262, 2), (273, 8), (277, c), (278, h), (279, len(data))]
    tags += [(338, 2)] if c == 4 else []  # unassociated alpha
    after = 8 + len(data) + 6 + 12 * (len(tags) + 1)
    tags = sorted((number, 4, 1, value) for number, value in tags)
    tags = sorted([*tags, (258, 3, c, after)])
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    fields = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (
        head
        + data
        + struct.pack("<H", len(tags))
        + fields
        + bytes(4)
        + struct.pack("<4H", *[16] * 4)
    )


def deep_png(values: np.ndarray, folder: Path) -> bytes:
    path = folder / "deep.png"
    write_png(values, path, {"compress_level": 6})
    return path.read_bytes()


def deep_pictures(folder: Path) -> dict[str, bytes]:
    """Pictures of 16 bits a channel in colour."""
    random = np.random.default_rng(1)
    four = random.integers(0, 65536, (24, 32, 4), dtype=np.uint16)
    found = {}
    for name, values in (("rgb", four[..., :3]), ("rgba", four)):
        found[f"png {name} 16"] = deep_png(values, folder)
        found[f"tiff {name} 16"] = deep_tiff(values)
    return found


def pictures() -> dict[str, bytes]:
    """A small picture in every format and mode that is read."""
    random = np.random.default_rng(0)
    plain = Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    plain = plain.resize((32, 24), Image.Resampling.BILINEAR)
    deep = np.asarray(plain.convert("L")).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    clear = plain.convert("RGBA")
    clear.putalpha(Image.fromarray((deep >> 8).astype(np.uint8)))
    tagged = {"exif": exif.tobytes(), "dpi": (300, 300)}
    return {
        "jpeg": encoded(plain, "JPEG", **tagged),
        "progressive": encoded(plain, "JPEG", progressive=True, quality=30),
        "cmyk": encoded(plain.convert("CMYK"), "JPEG"),
        "png": encoded(plain, "PNG", **tagged),
        "png alpha": encoded(clear, "PNG"),
        "png palette": encoded(plain.quantize(8), "PNG", transparency=2),
        "png 16": encoded(Image.fromarray(deep), "PNG"),
        "png 1": encoded(plain.convert("1"), "PNG"),
        "webp": encoded(plain, "WEBP", exif=exif.tobytes()),
        "webp lossless": encoded(clear, "WEBP", lossless=True),
        "gif": encoded(plain.quantize(16), "GIF"),
        "gif frames": encoded(plain.quantize(4), "GIF", save_all=True, append_images=[plain]),
        "tiff": encoded(plain, "TIFF", **tagged),
        "tiff lzw": encoded(clear, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(plain, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encoded(plain, "TIFF", compression="jpeg"),
        "tiff fax": encoded(plain.convert("1"), "TIFF", compression="group4"),
        "tiff float": encoded(Image.fromarray(deep.astype(np.float32)), "TIFF"),
        "bmp": encoded(plain, "BMP"),
        "ppm": encoded(plain, "PPM"),
        "pgm 16": encoded(Image.fromarray(deep), "PPM"),
        "tga": encoded(plain, "TGA", compression="tga_rle"),
        "jp2": encoded(plain, "JPEG2000"),
        **({"avif": encoded(plain, "AVIF")} if "AVIF" in Image.SAVE else {}),
    }


def zips(images: dict[str, bytes]) -> dict[str, bytes]:
    found = {}
    for name, method in (("stored", 0), ("deflated", 8), ("bzip2", 12), ("lzma", 14)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for member in ("png", "jpeg", "gif"):
                archive.writestr(f"p/{member}.{member}", images[member])
            archive.writestr("p/without", images["bmp"])
            archive.writestr("notes.txt", b"words")
        found[name] = file.getvalue()
    return found


def tars(images: dict[str, bytes]) -> dict[str, bytes]:
    found = {}
    for name, kind in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", 2)):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for member in ("png", "jpeg", "gif"):
                info = tarfile.TarInfo(f"p/{'é' * (60 if kind else 1)}{member}.{member}")
                info.size = len(images[member])
                archive.addfile(info, io.BytesIO(images[member]))
            link = tarfile.TarInfo("p/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(link)
        found[name] = file.getvalue()
    return found


def index(images: dict[str, bytes], folder: Path) -> bytes:
    """What `prepare --shards` writes beside its shards, which stay in the folder `set`."""
    for name in ("png", "jpeg", "gif"):
        (folder / "from").mkdir(exist_ok=True)
        (folder / "from" / f"{name}.{name}").write_bytes(images[name])
    pack([str(folder / "from")], folder / "set", Packing(smallest=1, size=16, shards=True))
    return (folder / "set" / INDEX).read_bytes()


def tiny() -> Config:
    """The demo with networks as narrow as they can be."""
    demo, eight = PRESETS["demo"], (8,)
    model = replace(
        demo.model,
        image_size=16,
        encoder_channels=eight,
        style_channels=eight,
        style_dim=8,
        head_channels=eight,
        up_channels=eight,
        discriminator_channels=eight * 2,
        patch_size=8,
        patch_channels=eight * 2,
    )
    return replace(demo, model=model, data=replace(demo.data, resize=16))


def seeds(folder: Path) -> dict[str, dict[str, bytes]]:
    """Good files by kind."""
    images = pictures()
    config = tiny()
    weights = folder / "weights"
    save_weights(weights, Encoder(config.model), Generator(config.model), config)
    state = Checkpoints(folder / "checkpoints").save(8, {"x": Numbers()})
    records = [{"nimg": 8 * k, "seconds": 1.5 * k, "loss/a": 0.25} for k in range(6)]
    log = "".join(json.dumps(record) + "\n" for record in records)
    return {
        "picture": images | deep_pictures(folder),
        "mask": {name: images[name] for name in ("png", "png palette", "png alpha", "png 1")},
        "zip": zips(images),
        "shards": tars(images),
        "index": {"index": index(images, folder)},
        "config": {"config": config.to_json().encode()},
        "log": {"log": log.encode()},
        "state": {"state": state.read_bytes()},
        "weights": {"weights": weights.read_bytes()},
    }


# ---- damage

_WORDS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
_TEXTS = [b"null", b"NaN", b"-1", b"1e999", b"[" * 500, b"9" * 5000, b'"x"', b"{}", b"\xff", b"\0"]


def damaged(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Some changes, most of them near the start, where headers are."""
    result = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        length = max(1, len(result))
        near = random.random() < 0.5
        place = int(random.integers(0, min(length, 200) if near else length))
        span = int(2 ** random.uniform(0, np.log2(length + 1)))
        match int(random.integers(0, 9)):
            case 0:
                result[place : place + 1] = bytes([int(random.integers(0, 256))])
            case 1:
                result[place : place + 1] = (
                    bytes([result[place] ^ 1 << int(random.integers(0, 8))]) if result else b""
                )
            case 2:
                word = _WORDS[int(random.integers(0, len(_WORDS)))]
                order = "big" if random.random() < 0.5 else "little"
                result[place : place + 4] = word.to_bytes(4, order)
            case 3:
                del result[place : place + span]
            case 4:
                result[place:place] = result[place : place + span][:4096]
            case 5:
                result[place : place + span] = bytes(len(result[place : place + span]))
            case 6:
                result[place : place + span] = other[place : place + span]
            case 7:
                result[place:place] = _TEXTS[int(random.integers(0, len(_TEXTS)))]
            case _:
                result = result[: int(random.integers(0, length + 1))]
    return bytes(result)


# ---- readers


def read_picture(path: Path) -> None:
    data = path.read_bytes()
    picture_size(io.BytesIO(data))
    decode(io.BytesIO(data), short_side=8)
    decode(io.BytesIO(data), checksums=True)
    picture = load_picture(path)
    save_image(picture.tensor(), path.with_name("out.png"), like=picture)


def read_zip(path: Path) -> None:
    pack([str(path)], path.with_name("out.zip"), Packing(smallest=1, size=16))


def read_shards(path: Path) -> None:
    tar = path.with_name("input.tar")
    os.replace(path, tar)
    pack([str(tar)], path.with_name("out.zip"), Packing(smallest=1, size=16))


def read_shard_index(path: Path) -> None:
    folder = path.with_name("set")
    os.replace(path, folder / INDEX)
    pack([str(folder)], path.with_name("out.zip"), Packing(smallest=1, size=16))


def read_config_file(path: Path) -> None:
    try:
        Config.from_json(path.read_text())
    except ValueError as error:  # a torn text too; commands make a sentence of it
        if not str(error):
            raise


def read_log(path: Path) -> None:
    JsonLines(path).read()


def read_state(path: Path) -> None:
    folder = path.with_name("states")
    folder.mkdir(exist_ok=True)
    os.replace(path, folder / "state-000000008.pt")
    Checkpoints(folder).load_latest({"x": Numbers()})


READERS: dict[str, Reader] = {
    "picture": read_picture,
    "mask": lambda path: read_mask(path).remark(),
    "zip": read_zip,
    "shards": read_shards,
    "index": read_shard_index,
    "config": read_config_file,
    "log": read_log,
    "state": read_state,
    "weights": RegionEditor.from_checkpoint,
}
SHARES = {"picture": 50, "mask": 10, "zip": 15, "shards": 10, "index": 5}
SHARES |= {"config": 8, "log": 5, "state": 5, "weights": 7}


def growth() -> float:
    """MB that this process has taken at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def _on_alarm(*_: object) -> None:
    raise Hang


def fuzz(
    inputs: int, seed: int, kinds: tuple[str, ...], keep: Path, seconds: float = math.inf
) -> dict:
    """Counts by kind and outcome, and what was found."""
    counts: dict[str, collections.Counter] = {kind: collections.Counter() for kind in kinds}
    shares = np.array([SHARES[kind] for kind in kinds], float)
    found: list[str] = []
    slowest = 0.0
    for clock in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(clock, _on_alarm)
    with tempfile.TemporaryDirectory() as folder:
        good = seeds(Path(folder))
        everything = [data for files in good.values() for data in files.values()]
        for kind in kinds:  # readers load their libraries
            for data in good[kind].values():
                attempt(READERS[kind], Path(folder), data)
        before, end, done = growth(), time.monotonic() + seconds, 0
        for k in range(inputs):
            if time.monotonic() > end:
                break
            random = np.random.default_rng([seed, k])
            kind = kinds[int(random.choice(len(kinds), p=shares / shares.sum()))]
            names = list(good[kind])
            data = good[kind][names[int(random.integers(0, len(names)))]]
            data = damaged(data, everything[int(random.integers(0, len(everything)))], random)
            started = time.process_time()
            outcome, trace = attempt(READERS[kind], Path(folder), data)
            slowest = max(slowest, time.process_time() - started)
            counts[kind][outcome] += 1
            done += 1
            if trace:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{kind}-{seed}-{k}").write_bytes(data)
                found.append(f"{kind}, input {k} of seed {seed}: {trace}")
                print(found[-1], file=sys.stderr, flush=True)
            if k % 5000 == 4999:
                print(f"{k + 1} inputs, {len(found)} found", file=sys.stderr, flush=True)
    grown = growth() - before
    if grown > GROWTH_MB:
        found.append(f"grew by {grown:.0f} MB")
    return {
        "inputs": done,
        "seed": seed,
        "outcomes": {kind: dict(sorted(count.items())) for kind, count in counts.items()},
        "slowest_seconds": round(slowest, 2),
        "growth_mb": round(grown),
        "found": found,
        "machine": platform.machine(),
        "pillow": Image.__version__,
        "torch": torch.__version__,
    }


def attempt(reader: Reader, folder: Path, data: bytes) -> tuple[str, str]:
    """How reading the data ends; with a traceback, if it may not end so."""
    path = folder / "input"
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            reader(path)
        return "read", ""
    except EXPECTED as error:
        return ("refused", "") if str(error) else ("silent", "a refusal without a sentence")
    except Hang:
        return "hang", f"no end within {SECONDS} s"
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which it stops")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="of what was found")
    parser.add_argument("--out", type=Path, help="JSON file of the counts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    result = fuzz(given.inputs, given.seed, tuple(given.kinds), given.keep, 60 * given.minutes)
    result["seconds"] = round(time.monotonic() - started)
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    return int(bool(result["found"]))


if __name__ == "__main__":
    sys.exit(main())
