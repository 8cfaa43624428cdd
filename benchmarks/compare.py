"""Our column with another rwm_fast: of another git revision, or of a process that keeps its memory.

Each is a process of its own (`worker.py`) that takes its turns between those of the columns here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.measure import Seconds

Say = Callable[[str], None]


class CannotCompare(RuntimeError):
    """There is no such revision, or it cannot be built; the message says why."""


def git(root: Path, *arguments: str) -> str:
    run = subprocess.run(("git", "-C", str(root), *arguments), capture_output=True, text=True)
    if run.returncode:
        raise CannotCompare(f"git {' '.join(arguments)}: {run.stderr.strip()}")
    return run.stdout.strip()


def commit_of(revision: str, root: Path = ROOT) -> str:
    """The full hash of a revision's commit."""
    if not (root / ".git").exists():
        raise CannotCompare(f"--compare {revision}: {root} is no git checkout")
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except CannotCompare:
        raise CannotCompare(f"--compare {revision}: git knows no such commit here") from None


def tree_of(commit: str, say: Say, root: Path = ROOT) -> Path:
    """The revision's files with its native code built, made once and kept beside git's own."""
    kept = Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    folder = kept / "rwm_fast-benchmarks" / commit
    if folder.exists():
        return folder
    part = folder.with_name(f"{commit}.{os.getpid()}")  # what is not whole has another name
    part.mkdir(parents=True)
    try:
        files = part / "files.zip"
        git(root, "archive", f"--output={files}", commit)
        with zipfile.ZipFile(files) as archive:
            archive.extractall(part)
        files.unlink()
        if not (part / "rwm_fast").is_dir():
            raise CannotCompare(f"{commit[:12]} has no package rwm_fast")
        _build(part, commit, say)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def _build(folder: Path, commit: str, say: Say) -> None:
    """Its native code, in place, where it has any to build."""
    if not (folder / "setup.py").exists():
        return
    say(f"building rwm_fast of {commit[:12]}: once, a minute or a few")
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if run.returncode:
        last = "\n".join((run.stdout + run.stderr).splitlines()[-15:])
        raise CannotCompare(f"{commit[:12]} does not build:\n{last}")


@dataclass
class Remote:
    """A column in another process; a row is built before it is measured."""

    folder: Path
    environment: Mapping[str, str]

    def __post_init__(self):
        self.process = subprocess.Popen(
            (sys.executable, str(ROOT / "benchmarks/worker.py"), "--package", str(self.folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )

    def ask(self, **command: object) -> dict:
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            return {"error": f"its process ended with status {self.process.wait()}"}
        return json.loads(reply)

    def build(self, row: str, threads: int) -> str | None:
        """None, or why this version has no such column."""
        return self.ask(do="build", row=row, threads=threads).get("error")

    def measure(self) -> Seconds:
        reply = self.ask(do="measure")
        if "error" in reply:
            raise CannotCompare(reply["error"])
        return reply["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def build_all(
    remotes: Mapping[str, Remote], row: str, threads: int
) -> tuple[dict[str, Remote], dict[str, str]]:
    """The remote columns of a row, and the reasons of those that it lacks."""
    reasons = {name: remote.build(row, threads) for name, remote in remotes.items()}
    found = {name: remotes[name] for name, reason in reasons.items() if reason is None}
    return found, {name: reason for name, reason in reasons.items() if reason is not None}
