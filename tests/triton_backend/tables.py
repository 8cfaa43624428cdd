"""The stored counts of every kernel's code, so that a change of it is seen and not only its worst
forms; and so that the same code is not compiled at every check.

A row has the key of all that the code is made from. As long as that is the same, so is the code,
and the gates read the row. Rows of new keys are compiled, and one in eight of the others, whose
counts must be the stored ones to the last instruction. All are compiled and written anew by

    RWM_FAST_TEST_WRITE_GATES=1 pytest -m triton_aot
"""

import functools
import json
import os

import triton

DRIFT = 0.1
SAMPLE = 8
WRITE = os.environ.get("RWM_FAST_TEST_WRITE_GATES") == "1"


def known(path, label, key):
    """The row of this label, if it is of this key and need not be compiled; or None."""
    stored = _stored(path)
    row = stored["rows"].get(label, {})
    same = not WRITE and stored["triton"] == triton.__version__ and row.get("key") == key
    return row if same and int(key, 16) % SAMPLE else None


@functools.cache
def _stored(path):
    return json.loads(path.read_text()) if path.exists() else {"triton": None, "rows": {}}


def check(path, rows):
    """Compare rows (name → Facts.row()) with a stored table, or write them into it if told to.

    Returns lines about counts that drifted by more than a tenth, or at all for the same key; None
    if the table was made by another version of Triton, whose code is its own.
    """
    if WRITE:
        _write(path, rows)
        return []
    stored = _stored(path)
    if stored["triton"] not in (None, triton.__version__):
        return None
    return [line for name, row in rows.items() for line in _drift(name, row, stored["rows"])]


def _drift(name, row, stored):
    if name not in stored:
        return [f"{name}: not in the table"]
    old = stored[name]
    share, least = (0, 0) if row["key"] == old.get("key") else (DRIFT, 1)
    return [
        f"{name}: {count} was {old.get(count, 0)}, is {row.get(count, 0)}"
        for count in sorted({*old, *row} - {"key"})
        # Below ten a tenth is less than one instruction.
        if abs(row.get(count, 0) - old.get(count, 0)) > max(share * old.get(count, 0), least)
    ]


def _write(path, rows):
    stored = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    kept = stored["rows"] if stored.get("triton") == triton.__version__ else {}
    table = {"triton": triton.__version__, "rows": dict(sorted({**kept, **rows}.items()))}
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in table["rows"].items())
    path.write_text(f'{{"triton": {json.dumps(table["triton"])}, "rows": {{\n{lines}\n}}}}\n')
