"""Edits of every picture of a folder or zip: what each result depends on, and how it is made."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rwm_fast.app.edits import Looks, Painting, composed, deepened, paint, save_edit
from rwm_fast.app.folders import File, SkipError, Task, files_of, stems
from rwm_fast.app.metadata import Texts
from rwm_fast.app.regions import Regions, read_regions
from rwm_fast.data.decode import picture_in
from rwm_fast.data.formats import BadImageError, Limits
from rwm_fast.models import RegionEditor


@dataclass
class Batch:
    """Makes tasks. Of a folder of styles every picture is encoded once, and no longer kept."""

    editor: RegionEditor
    painting: Painting
    regions: Regions  # of whose masks each may be a folder, with a mask for each picture
    limits: Limits
    looks: Looks | None  # None: every task has a style of its own
    settings: str  # all that every result depends on
    texts: Callable[[Task], Texts]
    _styles: dict[File, tuple[Looks, str] | SkipError] = field(default_factory=dict)
    _masks: dict[Path, dict[str, Path]] = field(default_factory=dict)

    def key_of(self, task: Task, content: bytes) -> str:
        """A digest of all that the result depends on."""
        total = hashlib.blake2b(self.settings.encode(), digest_size=16)
        total.update(hashlib.blake2b(content).digest())
        if task.style is not None:
            total.update(self._style(task.style)[1].encode())
        for path in self._regions_of(task.content).mask:
            total.update(hashlib.blake2b(path.read_bytes()).digest())
        return total.hexdigest()

    def make(self, task: Task, content: bytes) -> Callable[[Path], object]:
        """Edits the task's picture; what comes back writes it."""
        looks = self.looks if task.style is None else self._style(task.style)[0]
        assert looks is not None  # a task without a style belongs to a batch that has one
        picture = picture_in(io.BytesIO(content), self.limits)
        image, regions = picture.shown(), self._regions_of(task.content)
        masks = read_regions(regions, (image.height, image.width), self.limits)
        edit = composed(image, looks, regions, masks, self.editor)
        edited = paint(self.editor, deepened(edit, picture, Path(task.target)), self.painting)
        return lambda path: save_edit(edited, path, picture, self.texts(task))

    def _style(self, file: File) -> tuple[Looks, str]:
        """A style's code, and a digest of its file."""
        if file not in self._styles:
            try:
                data = file.read()
                image = picture_in(io.BytesIO(data), self.limits).shown()
                working = self.painting.working()
                code = self.editor.encode(image, picture=False, **working).style
                mark = hashlib.blake2b(data, digest_size=16).hexdigest()
                self._styles[file] = Looks([code]), mark
            except BadImageError as error:
                self._styles[file] = SkipError(file, error)
        found = self._styles[file]
        if isinstance(found, SkipError):
            raise found
        return found

    def _regions_of(self, content: File) -> Regions:
        """The regions with the masks of this picture in the place of their folders."""
        own = stems([content.name])[0]
        paths = []
        for path in self.regions.mask:
            if path.is_dir():
                if path not in self._masks:
                    masks = [file.name for file in files_of(path, self.limits)[0]]
                    self._masks[path] = dict(
                        zip(stems(masks), (path / m for m in masks), strict=True)
                    )
                if own not in self._masks[path]:
                    raise SkipError(content, f"{path} holds no mask of its name")
                path = self._masks[path][own]
            paths.append(path)
        return replace(self.regions, mask=tuple(paths))
