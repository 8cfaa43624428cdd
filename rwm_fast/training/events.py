"""The log as TensorBoard events too."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from rwm_fast.errors import UserError
from rwm_fast.training.stats import JsonLines, Record


class EventLog(JsonLines):
    """A log whose numbers also go to event files in `folder`, under their names, at images seen.

    The log is the truth: a run that goes on writes events on from where it does, and tells
    TensorBoard to forget those after. UserError without the package tensorboard.
    """

    def __init__(self, path: Path, folder: Path):
        super().__init__(path)
        self.folder, self._writer = folder, None
        self._writer_class = _writer_class()

    def append(self, record: Record) -> None:
        super().append(record)
        writer = self._writer or self._open(record["nimg"])
        for name, value in record.items():
            if name != "nimg" and isinstance(value, (int, float)):
                writer.add_scalar(name, value, record["nimg"])
        writer.flush()

    def keep_until(self, nimg: int) -> None:
        super().keep_until(nimg)
        self._open(nimg + 1)

    def start(self) -> None:
        super().start()
        self._open(0)

    def _open(self, first: int) -> Any:
        """Events from image number `first` on."""
        self._writer = writer = self._writer_class(str(self.folder), purge_step=first)
        weakref.finalize(self, writer.close)
        return writer


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and asked for by few
    except ImportError as error:
        raise UserError(
            f"--train.tensorboard needs the package tensorboard, pip install '.[tensorboard]' "
            f"({error})"
        ) from None
    return SummaryWriter
