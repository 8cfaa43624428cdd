"""Everything a measurement has found so far, in one file that is never half written.

`results.json`: {"version", "identity", "runs", "parts": {part: {"rows": {name: result}}},
"running", "crashed"}. A row in the file is finished and is not done again. `running` says what a
process is at, so that whoever finds it dead knows what killed it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

VERSION = 1
# What must be equal for two runs to share a table.
IDENTITY = ("name", "torch", "cuda", "triton")


class Mixed(ValueError):
    """The folder holds results of another machine or of other software."""


class Store:
    """The file, and what is in it. One process writes at a time."""

    def __init__(self, path: Path):
        self.path = path
        fresh = {"version": VERSION, "identity": {}, "runs": [], "parts": {}}
        fresh |= {"running": None, "crashed": {}}
        self.data: dict = json.loads(path.read_text()) if path.exists() else fresh
        if self.data.get("version") != VERSION:
            raise Mixed(f"{path}: version must be {VERSION}, got {self.data.get('version')!r}")

    def save(self) -> None:
        """As a whole or not at all."""
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
        self.data["identity"] = {key: identity.get(key) for key in IDENTITY}
        self.data["runs"].append(run)
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
        """Drop finished rows for which wanted(part, row), to do them again."""
        for part, found in self.data["parts"].items():
            for row in [row for row in found["rows"] if wanted(part, row)]:
                del found["rows"][row]
                self.data["crashed"].pop(f"{part}/{row}", None)
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
