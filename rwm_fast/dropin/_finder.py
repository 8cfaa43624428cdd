"""Puts our modules in the place of other projects' files when those are imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from rwm_fast.dropin import basicsr, mmcv, nvidia, rosinality

log = logging.getLogger("rwm_fast")
OFFERS = (*nvidia.OFFERS, *rosinality.OFFERS, *mmcv.OFFERS, *basicsr.OFFERS)
replaced: dict[str, str] = {}  # module that is ours now -> family
left: dict[str, str] = {}  # module or layer that was left as it is -> why


class Finder(importlib.abc.MetaPathFinder):
    """Serves a file of a known name in its own package, if what it defines is known."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        offer = next((offer for offer in OFFERS if offer.fits(fullname)), None)
        if offer is None:
            return None
        theirs = PathFinder.find_spec(fullname, path)
        if theirs is None:  # there is no such file: nothing to replace
            return None
        held: dict[str, Any] | str = "its source cannot be read"
        source = getattr(theirs.loader, "get_source", lambda name: None)(fullname)
        if source is not None:
            held = offer.serve(source)
        if isinstance(held, str):
            leave(fullname, held)
            return None
        replaced[fullname] = offer.family
        log.warning("%s runs on rwm_fast, in place of %s", fullname, theirs.origin)
        return ModuleSpec(fullname, Loader(held), origin=f"rwm_fast.dropin for {theirs.origin}")


class Loader(importlib.abc.Loader):
    """Fills a new module with what it holds."""

    def __init__(self, held: dict[str, Any]) -> None:
        self.held = held

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self.held)


def leave(name: str, why: str) -> None:
    """Says once that something stays as it is."""
    if left.get(name) != why:
        left[name] = why
        log.warning("%s is left as it is: %s", name, why)


def install() -> None:
    """Serves imports from here on; what was imported before stays, and is named."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Finder())
    for name in list(sys.modules):
        if any(offer.fits(name) for offer in OFFERS) and name not in replaced:
            leave(name, "it was imported before rwm_fast.dropin")


def uninstall() -> None:
    """Serves no import any more; what was imported stays."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
