"""What the installation built, and why it did not build the rest."""

from __future__ import annotations

import json
from pathlib import Path

from rwm_fast import __version__

_RECORD = Path(__file__).with_name("_build_info.json")
_NEVER = "not built: this source tree has not been built (pip install -e .)"


def build_info() -> dict[str, str]:
    """The build's own words: one sentence for each native module, and the package's version.

    Returns
    -------
    dict
        ``version``; ``cpu`` and ``cuda``: "built with …" or "not built: " and the reason.
    """
    try:
        record = json.loads(_RECORD.read_text())
    except FileNotFoundError:
        record = {"cpu": _NEVER, "cuda": _NEVER}
    return {"version": __version__, **record}
