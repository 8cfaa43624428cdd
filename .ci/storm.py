#!/usr/bin/env python3
"""The storm: kills, full disks and damaged files, and what is left after each.

    python .ci/storm.py --write     100 kills, 30 full disks, 1,500 damaged files; .ci/storm.md
    python .ci/storm.py --short     seconds

The long form goes in rounds and says after each how it stands; given again after an interruption it
goes on with the round that was cut off (`runs/storm.json`, kept for the same sources).
Runs of a tiny model are forked from this process, which has loaded torch once and computes with one
thread. Full disks are small file systems in memory for who may mount them, else a limit on the size
of files. Exit status 1: something was lost, torn, doubled or taken for good. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # these two once, not in every run
import matplotlib.figure  # noqa: F401
import numpy as np
import torch
import torch._dynamo
from PIL import Image

from rwm_fast import train as command
from rwm_fast.config import Config
from rwm_fast.disk import write_whole
from rwm_fast.errors import UserError
from rwm_fast.models.weights import read_config, read_tensors
from rwm_fast.training import run
from rwm_fast.training.checkpoint import Checkpoints, Damaged, read_state
from rwm_fast.training.identity import read_identity
from rwm_fast.training.run_folder import RunFolder
from rwm_fast.training.stats import JsonLines

TINY = """
--model.image-size 16 --model.encoder-channels 8 --model.style-channels 8 --model.style-dim 8
--model.head-channels 8 --model.up-channels 8 --model.tail-channels 8
--model.discriminator-channels 8 8 --model.discriminator-hidden 8 --model.patch-size 8
--model.patch-channels 8 8 --model.patch-feature-channels 8 --model.patch-hidden 8
--data.resize 16 --data.pool 12 --batch 4 --train.threads 1 --device cpu --precision fp32
--train.reconstruction-fraction 0.4 --train.log-kimg 0.004 --train.checkpoint-kimg 0.004
--train.sample-kimg 0.1 --train.sample-seconds 0
""".split()
SIGNALS = [signal.SIGKILL] * 7 + [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
ROUNDS, KILLS, DISKS, DAMAGES = 5, 10, 6, 300  # kills of either kind of run, in a round


class Storm:
    def __init__(self, folder: Path, kimg: float, seed: int):
        self.folder, self.kimg = folder, kimg
        self.random = random.Random(seed)
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self.told = time.monotonic()
        sys.path.append(str(folder))  # so that the processes of this storm are known by it

    def close(self) -> None:
        sys.path.remove(str(self.folder))

    def count(self, what: str, n: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + n

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failures.append(what)
            print(f"FAILED  {what}", flush=True)

    def tell(self) -> None:
        """How far it is, for who waits."""
        if time.monotonic() - self.told > 30:
            self.told = time.monotonic()
            print(", ".join(f"{n} {what}" for what, n in self.counts.items()), flush=True)

    def start(self, out: Path, *more: str, limit: int = 0) -> int:
        """Fork a training command; its process id."""
        pid = os.fork()
        if pid:
            return pid
        status = 70
        try:
            log = os.open(self.folder / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal,
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also behind nohup
            words = [*TINY, "--kimg", str(self.kimg), "--out", str(out), *more]
            status = command.main(words)
        except KeyboardInterrupt:  # before the command is there to take it
            status = 130
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:
            os.write(2, f"Traceback: {error!r}\n".encode())
        finally:
            os._exit(status)

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")

    # ---- kills

    def kills(self, name: str, count: int, *more: str) -> None:
        """Kill a run again and again until it is done; its end is that of an undisturbed one."""
        out, straight = self.folder / name, self.folder / f"{name}-straight"
        status = wait(self.start(straight, *more))
        self.expect(status == 0, f"{name}: the undisturbed run ended with {status}: {self.said()}")
        newest = 0
        for _ in range(count):
            pid, number = self.start(out, *more), self.random.choice(SIGNALS)
            self.tell()
            self.moment(pid, out)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            status = wait(pid)
            self.count(f"kills, {name}")
            self.count("kills by signals that ask", number != signal.SIGKILL)
            self.count("kills while a file was being written", any(out.rglob("*.partial")))
            known = (0, -signal.SIGKILL) if number == signal.SIGKILL else (0, 130, -number)
            self.expect(status in known, f"{name}: signal {number} gave {status}: {self.said()}")
            newest = self.look(name, out, newest)
            if status == 0:
                self.count("runs that came to their end before the kill")
                shutil.rmtree(out)
                newest = 0
        self.expect(wait(self.start(out, *more)) == 0, f"{name}: the last start failed")
        same = equal(last_state(out), last_state(straight))
        self.expect(same, f"{name}: the run is not what it would have been")
        self.expect(not self.orphans(), f"{name}: processes are left")
        numbers = [r["nimg"] for r in JsonLines(out / "log.jsonl").read() if "loss/edge" in r]
        steps = list(range(4, round(self.kimg * 1000) + 1, 4))
        self.expect(numbers == steps, f"{name}: log lines lost or doubled: {numbers}")

    def moment(self, pid: int, out: Path) -> None:
        """Wait until the run is writing a state, or has saved some more, or has ended, and a little
        longer: so kills fall everywhere, whatever the speed of the machine."""
        if self.random.random() < 0.4:
            while running(pid) and not any(out.glob("checkpoints/*.partial")):
                time.sleep(0.001)
            return
        more = self.random.randrange(6)
        aim = saved(out) + 4 * more
        while more and running(pid) and saved(out) < aim:
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, 0.15 if more else 1.5))

    def look(self, name: str, out: Path, newest: int) -> int:
        """Every file in a run folder is whole, and no state is lost."""
        states = Checkpoints(out / "checkpoints")
        for path in states.paths():
            try:
                read_state(path)
            except Damaged as error:
                self.expect(False, f"{name}: {path.name} is torn: {error}")
        if (out / "weights.safetensors").exists():
            read_tensors(out)
        for path in (out / "samples").glob("*.png"):
            with Image.open(path) as picture:
                picture.load()
        state = states.newest()
        now = state["nimg"] if state else 0
        self.expect(now >= newest, f"{name}: state {newest} is lost, the newest is {now}")
        return now

    def orphans(self) -> list[str]:
        """Processes that read pictures for this storm, after the time they have to end."""
        for _ in range(100):
            found = [p for p in Path("/proc").glob("[0-9]*/cmdline") if self._is_worker(p)]
            if not found:
                return []
            time.sleep(0.1)
        return [str(path) for path in found]

    def _is_worker(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            text = path.read_bytes()
            return b"rwm_fast.data.worker" in text and os.fsencode(self.folder) in text
        return False

    # ---- full disks

    def disks(self, count: int) -> None:
        size = sum(p.stat().st_size for p in (self.folder / "landscapes").rglob("*") if p.is_file())
        for k in range(count):
            out, room = self.folder / f"disk-{k}", self.random.randrange(8192, size)
            mounted = mount(out, room)
            self.tell()
            short = ("--kimg", "0.016")  # a full disk shows at the second state
            status = wait(self.start(out / "run", *short, limit=0 if mounted else room // 8))
            text = self.said()
            self.count(f"full disks ({'mounted' if mounted else 'limit on the size of files'})")
            self.expect(status in (0, 2), f"disk of {room} bytes: exit {status}: {text}")
            self.expect("Traceback" not in text, f"disk of {room} bytes: {text}")
            if status == 2:
                self.count("full disks that stopped a run, with one sentence")
                self.look(f"disk of {room} bytes", out / "run", 0)
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
            status = wait(self.start(out / "run", *short))
            self.expect(status == 0, f"disk of {room} bytes, with room again: {self.said()}")
            if mounted:
                subprocess.run(["umount", out], check=True)
            shutil.rmtree(out)

    # ---- damage

    def damage(self, count: int) -> None:
        """Files with bits flipped, blocks zeroed, ends cut: refused, or read as they were."""
        out = self.folder / "landscapes"
        state = Checkpoints(out / "checkpoints").paths()[-1]
        readers: dict[Path, Any] = {
            state: read_state,
            out / "weights.safetensors": lambda p: (read_config(p), read_tensors(p)),
        }
        folder = RunFolder(out)
        harmless = {
            out / "config.json": lambda _: folder.check(Config()),
            out / "log.jsonl": lambda p: (JsonLines(p).read(), JsonLines(p).keep_until(8)),
            out / "pictures.json": read_identity,
        }
        for k, (path, read) in enumerate((readers | harmless).items()):
            content, share = path.read_bytes(), count * (5, 4, 2, 2, 1)[k] // 14
            expected = read(path) if path in readers else None
            for _ in range(share):
                path.write_bytes(spoil(content, self.random))
                self.count(f"damaged {path.suffix}")
                try:
                    got = read(path)
                    whole = "files read as they were" if path in readers else "texts read in part"
                    self.count(f"damaged {whole}")
                    good = path not in readers or equal(got, expected)
                    self.expect(good, f"damage in {path.name} was taken for good")
                except (Damaged, UserError):
                    self.count("damaged files refused")
                except Exception as error:
                    self.expect(False, f"damage in {path.name}: {error!r}")
            path.write_bytes(content)


def spoil(content: bytes, rand: random.Random) -> bytes:
    """One bit flipped, up to 4 KB zeroed, or the end cut off."""
    place, kind = rand.randrange(len(content)), rand.random()
    if kind < 0.6:
        flipped = content[place] ^ 1 << rand.randrange(8)
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    if kind < 0.8:
        return content[:place]
    end = min(place + rand.randrange(1, 4096), len(content))
    return content[:place] + bytes(end - place) + content[end:]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def last_state(out: Path) -> dict[str, Any]:
    state = Checkpoints(out / "checkpoints").newest() or {}
    return {name: value for name, value in state.items() if name != "clock"}


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def saved(out: Path) -> int:
    """Images seen by the newest state of a run, by its name."""
    return max((int(p.stem[6:]) for p in out.glob("checkpoints/state-*.pt")), default=0)


def mount(folder: Path, size: int) -> bool:
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make_photos(folder: Path, count: int = 24) -> None:
    folder.mkdir()
    rand = np.random.default_rng(0)
    for k in range(count):
        values = rand.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{k:02d}.png")


def blow(seed: int, short: bool) -> tuple[dict[str, int], list[str]]:
    """One round: what was done, and what failed."""
    kills, disks, damages, kimg = (3, 1, 140, 0.04) if short else (KILLS, DISKS, DAMAGES, 0.08)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a kill is no loss of power
    with tempfile.TemporaryDirectory(dir=memory) as name:
        storm = Storm(Path(name).resolve(), kimg, seed)
        make_photos(storm.folder / "photos")
        storm.kills("landscapes", kills)
        photos = ["--data", str(storm.folder / "photos"), "--data.cache-mb", "0"]
        photos += ["--data.workers", "1"]
        storm.kills("photos, read by a process", 1 if short else kills, *photos)
        storm.disks(disks)
        storm.damage(damages)
        storm.close()
    return storm.counts, storm.failures


def sources() -> str:
    """A hash of what is tried: counts of different programs do not add up."""
    root = Path(command.__file__).parent
    files = sorted(root.rglob("*.py")) + [Path(__file__)]
    return hashlib.blake2b(b"".join(p.read_bytes() for p in files), digest_size=8).hexdigest()


def rounds(count: int, kept: Path) -> tuple[dict[str, int], list[str]]:
    """All rounds; those that an interrupted call has finished are taken from `kept`."""
    done: dict[str, Any] = {"sources": sources(), "rounds": 0, "counts": {}, "failures": []}
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(kept.read_text())
        done = before if before["sources"] == done["sources"] else done
    for seed in range(done["rounds"], count):
        counts, failures = blow(seed, short=False)
        for what, n in counts.items():
            done["counts"][what] = done["counts"].get(what, 0) + n
        done |= {"rounds": seed + 1, "failures": done["failures"] + failures}
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(done)
        write_whole(kept, lambda p, text=text: p.write_text(text))
        said = ", ".join(f"{n} {what}" for what, n in done["counts"].items())
        print(f"round {seed + 1} of {count}: {len(done['failures'])} failures; {said}", flush=True)
    kept.unlink(missing_ok=True)
    return done["counts"], done["failures"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--kept", type=Path, default=Path("runs/storm.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run.REPORT_PAIRS = run.SAMPLE_PAIRS = 4
    begun = time.monotonic()
    short = arguments.short
    counts, failures = blow(0, short) if short else rounds(ROUNDS, arguments.kept)
    lines = ["| what | count |", "|---|---|", *(f"| {k} | {n} |" for k, n in counts.items())]
    lines += [f"| failures | {len(failures)} |"]
    text = "\n".join([*lines, *(f"\n{failure}" for failure in failures)])
    print(f"{text}\n{time.monotonic() - begun:.0f} s")
    if arguments.write:
        Path(__file__).with_suffix(".md").write_text(
            f"# The storm, as it ended last\n\n`{' '.join(['python', *sys.argv])}`, torch "
            f"{torch.__version__}, Python {sys.version.split()[0]}.\n\n{text}\n"
        )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
