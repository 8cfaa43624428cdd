"""A folder that any web server can serve: a page that runs exported networks in the visitor's own
browser. Its sources lie in rwm_fast/browser; what runs the networks comes from npm."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rwm_fast.errors import UserError

SOURCES = Path(__file__).parents[1] / "browser"
EXAMPLES = Path(__file__).parents[1] / "pictures"
ABOUT = "about.json"  # in the folder: what the page has to know, and which files are ours
PACKAGE, VERSION = "onnxruntime-web", "1.22.0"  # its wasm has 11.2 MB, that of 1.30.0 14.2
SHA512 = "Ud/+EBo6mhuaQWt/OjaOk0iNWjXqJoeeMFr6xQEERZdIZH2OWpGzuujz7lfuOBjUa6TEE/sc4nb7Da5dNL34fg=="
# in the package → in the folder; .js, for not every server knows .mjs
RUNTIME = {
    "package/dist/ort.wasm.min.mjs": "ort.js",
    "package/dist/ort-wasm-simd-threaded.mjs": "ort-wasm.js",
    "package/dist/ort-wasm-simd-threaded.wasm": "ort-wasm.wasm",
}


def build(out: Path, networks: Callable[[Path], object], stride: int, least: int, size: int) -> int:
    """Makes the folder, whole or not at all: the number of its bytes.

    `networks` writes encoder.onnx and generator.onnx for two regions into the folder that it is
    given; `stride`, `least` (of strides) and `size` are their facts, as `rwm_fast.export` has them.
    UserError where `out` holds anything but an earlier page, or npm does not give what is asked.
    """
    out = Path(os.path.realpath(out))
    _check(out)
    with _whole(out) as folder:
        _fetch_runtime(folder)
        networks(folder)
        for file in SOURCES.iterdir():
            shutil.copyfile(file, folder / file.name)
        (folder / "examples").mkdir()
        for file in (*EXAMPLES.glob("*.jpg"), EXAMPLES / "README.md"):
            shutil.copyfile(file, folder / "examples" / file.name)
        files = sorted([*_files(folder), ABOUT])
        about = {
            "stride": stride,
            "least_strides": least,
            # short sides at which the networks may work, and the one that is set
            "work_sizes": sorted({size, *(s for s in (128, 256, 512) if s > size)}),
            "work_size": max(size, 128),
            "examples": [f"{n}.jpg" for n in ("mountains", "canyon", "castle", "sunset")],
            "files": files,
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return sum((folder / name).stat().st_size for name in files)


def _files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()]


def _check(out: Path) -> None:
    """UserError unless `out` is absent, an empty folder, or an earlier page and nothing else."""
    if not out.exists():
        return
    rule = "expected a new folder, an empty one, or a page made before"
    if not out.is_dir():
        raise UserError(f"--out: {rule}, got the file {out}")
    there = set(_files(out))
    if not there and not any(out.iterdir()):
        return
    try:
        ours = json.loads((out / ABOUT).read_text(encoding="utf-8"))["files"]
        foreign = min(there - set(ours), default=None)
    except (OSError, ValueError, KeyError, TypeError):
        foreign = min(there, default="folders")
    if foreign is not None:
        raise UserError(f"--out: {rule}, got {out} with {foreign} in it")


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place if all goes well, and else is removed."""
    folder = out.with_name(f".{out.name[:50]}.{os.getpid()}.partial")
    old = folder.with_suffix(".old")
    try:
        folder.mkdir(parents=True)
        yield folder
        if out.exists():
            out.rename(old)
        folder.rename(out)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        raise UserError(f"--out: {out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fetch_runtime(folder: Path) -> None:
    """The files of `RUNTIME`, from a package whose hash is `SHA512`."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"--format browser needs npm, which comes with Node.js, to fetch {PACKAGE}: there is "
            "none on the PATH"
        )
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(
            [*command, "--pack-destination", place],
            capture_output=True,
            text=True,
            errors="replace",
        )
        packed = next(Path(place).glob("*.tgz"), None)
        if done.returncode or packed is None:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[0] if lines else f"exit status {done.returncode}"
            raise UserError(f"npm could not fetch {PACKAGE} {VERSION}: {reason}")
        _unpack(packed, folder)


def _unpack(packed: Path, folder: Path) -> None:
    content = packed.read_bytes()
    got = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if got != SHA512:
        rule = f"{PACKAGE} {VERSION}: expected a package of hash sha512-{SHA512}"
        raise UserError(f"{rule}, npm gave one of sha512-{got}")
    with tarfile.open(packed) as archive:
        for name, target in RUNTIME.items():
            file = archive.extractfile(name)
            assert file is not None  # as the hash says
            (folder / target).write_bytes(file.read())
