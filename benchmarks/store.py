"""Everything a measurement has found so far, in one file that is never half written.

`results.json`: {"version", "identity", "runs", "parts": {part: {"rows": {name: result}}},
"begun", "running", "crashed"}. A row in the file is finished and is not done again. `begun` has the
columns of a row that is not finished: what was checked is not checked again. `running` says what a
process is at, so that whoever finds it dead knows what killed it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

VERSION = 1
# What must be equal for two runs to share a table.
IDENTITY = ("name", "torch", "cuda", "triton")


class Mixed(ValueError):
    """The folder holds results of another machine or of other software."""


class Store:
    """The file, and what is in it. One process writes at a time. Without a path it is nowhere."""

    def __init__(self, path: Path | None = None):
        self.path = path
        fresh = {"version": VERSION, "identity": {}, "runs": [], "parts": {}, "begun": {}}
        fresh |= {"running": None, "crashed": {}}
        self.data: dict = fresh | (json.loads(path.read_text()) if path and path.exists() else {})
        if self.data.get("version") != VERSION:
            raise Mixed(f"{path}: version must be {VERSION}, got {self.data.get('version')!r}")

    def save(self) -> None:
        """As a whole or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(fresh, self.path)

    def begin(self, identity: dict, run: dict) -> None:
        """A new run on this machine; raises `Mixed` if the others were not on the same."""
        known = self.data["identity"]
        for key in IDENTITY:
            if known and known.get(key) != identity.get(key):
                raise Mixed(
                    f"{self.path}: {key} must be {known.get(key)!r} as in the earlier runs there, "
                    f"got {identity.get(key)!r}; choose another --out"
                )
        runs = self.data["runs"]
        if runs and runs[-1]["commit"] != run["commit"]:
            self.data["begun"] = {}  # checked on other code
        self.data["identity"] = {key: identity.get(key) for key in IDENTITY}
        runs.append(run)
        self.save()

    def rows(self, part: str) -> dict[str, dict]:
        """Finished rows of a part, by name."""
        return self.data["parts"].setdefault(part, {"rows": {}})["rows"]

    def has(self, part: str, row: str) -> bool:
        return row in self.rows(part)

    def finished(self, part: str) -> bool:
        """Whether every row that the part is known to have is there."""
        content = self.data["parts"].get(part, {})
        return "planned" in content and set(content["planned"]) <= set(content["rows"])

    def plan(self, part: str, names: list[str]) -> None:
        """All rows that the part has, so that a reader sees what is still to come."""
        self.rows(part)
        self.data["parts"][part]["planned"] = names
        self.save()

    def mark(self, part: str, row: str, column: str | None = None) -> None:
        """Say what comes next, before it can go wrong."""
        self.data["running"] = {"part": part, "row": row, "column": column}
        self.save()

    def put(self, part: str, row: str, result: dict) -> None:
        """A finished row."""
        run = len(self.data["runs"]) - 1
        self.rows(part)[row] = {"run": run, **result}
        self.data["begun"].pop(f"{part}/{row}", None)
        self.data["running"] = None
        self.save()

    def crashed(self, part: str, row: str) -> dict[str, str]:
        """Columns of a row that took their process with them, with the reason."""
        return self.data["crashed"].get(f"{part}/{row}", {})

    def blame(self, reason: str) -> str:
        """The process died: what it was at is left out from now on. Returns what that was."""
        running = self.data["running"]
        if running is None:
            return "between two rows"
        part, row, column = running["part"], running["row"], running["column"]
        reason = running.get("reason", reason)
        if column is None:
            self.put(part, row, {"failed": reason})
        else:
            self.data["crashed"].setdefault(f"{part}/{row}", {})[column] = reason
            self.data["running"] = None
            self.save()
        return f"{part}/{row}/{column}"

    def forget(self, wanted) -> None:
        """Drop rows for which wanted(part, row), to do them again."""
        for part, found in self.data["parts"].items():
            for row in [row for row in found["rows"] if wanted(part, row)]:
                del found["rows"][row]
        for name in ("begun", "crashed"):
            kept = self.data[name].items()
            self.data[name] = {k: v for k, v in kept if not wanted(*k.split("/", 1))}
        self.save()

    def take(self, other: Path) -> None:
        """The rows of another file, which is then removed."""
        if other.exists():
            found = Store(other).data
            for part, content in found["parts"].items():
                self.rows(part).update(content["rows"])
                if "planned" in content:
                    self.data["parts"][part]["planned"] = content["planned"]
            self.data["crashed"] |= found["crashed"]
            self.save()
            other.unlink()


@dataclass
class Progress:
    """The columns of one row while it is measured, as the store keeps them."""

    store: Store = field(default_factory=Store)
    part: str = ""
    row: str = ""

    @property
    def crashed(self) -> dict[str, str]:
        return self.store.crashed(self.part, self.row)

    def mark(self, column: str | None = None) -> None:
        self.store.mark(self.part, self.row, column)

    def known(self, column: str) -> dict | None:
        """Facts of an earlier process that has checked the column."""
        facts = self.store.data["begun"].get(f"{self.part}/{self.row}", {}).get(column)
        return facts if facts and "error" in facts else None

    def keep(self, column: str, facts: dict) -> None:
        self.store.data["begun"].setdefault(f"{self.part}/{self.row}", {})[column] = facts
        self.store.save()
