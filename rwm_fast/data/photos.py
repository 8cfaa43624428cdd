"""The user's photos as training crops: found, checked, kept in memory when they fit."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image

from rwm_fast.config import DataConfig
from rwm_fast.data.crops import crop, working_copy, working_size
from rwm_fast.data.decode import decode, picture_size
from rwm_fast.data.files import Place, find_pictures, kinds_of
from rwm_fast.data.formats import LIMITS, NO_PICTURE, BadImageError, Limits
from rwm_fast.data.order import draws_at, group_at, picture_in_group
from rwm_fast.data.shards import Shards
from rwm_fast.errors import UserError, printable

T = TypeVar("T")
Progress = Callable[[int, int], None]  # (done, total)
_MOST_HELD_OUT = 256  # pictures; scores need no more
_FEWEST_TO_SPLIT = 20  # pictures; a smaller set trains on all


@dataclass(frozen=True, slots=True)
class Photo:
    place: Place
    domain: int
    name: str  # within its place

    def __str__(self) -> str:
        return printable(f"{self.place}/{self.name}")

    def read(self, reader: Callable[..., T]) -> T:
        """reader(open file); BadImageError if the file cannot be opened or read."""
        try:
            file = self.place.open(self.name)
        except BadImageError:
            raise
        except Exception as error:  # gone, no file any more; the whole zip gone or damaged
            raise BadImageError(printable(error) or type(error).__name__) from None
        with file:
            return reader(file)


@dataclass(frozen=True, order=True)
class Unreadable:
    name: str
    reason: str


Sample = tuple[np.ndarray, int, list[Unreadable]]  # uint8 [S, S, 3], domain, what was unreadable


class PhotoSet:
    """Pictures from folders, zip files and shards, each source a domain, cropped for training.

    Unreadable files are left out and listed in `unreadable`; UserError when they are more than
    `config.max_bad_fraction` of all. When the pictures at working size fit in `config.cache_mb`
    they are decoded once and kept; otherwise they are decoded whenever they are used, in
    `config.workers` processes; crops are the same either way. A set of at least 20 pictures keeps
    the share `config.held_out` of them, at most 256, out of training.

    With `config.shard_groups` G above 1 the k-th shard belongs to group k mod G, and so does the
    k-th pair of neighbours in every batch: what a process takes of batches needs the shards of its
    own group alone, where the number of processes is a multiple of G. Held-out pictures are of the
    first group; nothing is kept in memory. UserError for sources that are no shards, and where
    batch does not divide.
    """

    def __init__(
        self,
        config: DataConfig,
        image_size: int,
        seed: int = 0,
        progress: Progress | None = None,
        batch: int = 0,
    ):
        self.config, self.image_size, self.seed = config, image_size, seed
        self.unreadable: list[Unreadable] = []
        self._limits = Limits(config.max_megapixels, config.max_member_mb)
        found, self.domains, self.passed_over = find_photos(config.sources, self._limits)
        self._found, groups = len(found), config.shard_groups
        _check_shards({photo.place for photo in found}, groups, batch)
        sizes = {photo: size for photo in found if (size := _known_size(photo))}
        unknown = [photo for photo in found if photo not in sizes]
        sizes |= self._read_all(unknown, lambda file: picture_size(file, self._limits), progress)
        self.photos = [photo for photo in found if photo in sizes]
        self.smaller = sum(min(size) < image_size for size in sizes.values())
        needed = sum(3 * math.prod(working_size(size, config)) for size in sizes.values())
        self._kept: dict[Photo, np.ndarray] | None = None
        if needed <= config.cache_mb * 1e6 and groups == 1:
            keep = lambda file: np.array(self._working_copy(file))
            self._kept = self._read_all(self.photos, keep, progress)
            self.photos = [photo for photo in self.photos if photo in self._kept]
        self._check()
        by_group = _dealt(self.photos, groups)
        self.held_out = _held_out(by_group[0], config.held_out)
        kept = set(self.held_out)
        self.training = [photo for photo in self.photos if photo not in kept]
        self._groups = [[photo for photo in group if photo not in kept] for group in by_group]

    def __len__(self) -> int:
        """Number of pictures to train on."""
        return len(self.training)

    @property
    def workers(self) -> int:
        return min(self.config.workers, os.cpu_count() or 1)

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    def sample(self, position: int) -> Sample:
        """The training crop at a position of the stream: uint8 [S, S, 3], its domain, and what
        could not be read. An unreadable picture is replaced by the next one of the set."""
        number, place = group_at(position, len(self._groups))
        index = picture_in_group(self.seed, number, place, [*map(len, self._groups)])
        group, troubles = self._groups[number], []
        for attempt in range(len(group)):
            photo = group[(index + attempt) % len(group)]
            try:
                image = self._open(photo)
            except BadImageError as error:
                troubles.append(Unreadable(str(photo), str(error)))
                continue
            draws = draws_at(self.seed, position, 4)
            return crop(image, self.image_size, self.config, *draws), photo.domain, troubles
        raise UserError("none of the pictures can be read any more")

    def centre(self, photo: Photo) -> np.ndarray:
        """The central crop of a picture, neither enlarged nor mirrored: uint8 [S, S, 3]."""
        return crop(self._open(photo), self.image_size, self.config, 0.5, 0.5)

    def report_unreadable(self, more: Sequence[Unreadable]) -> None:
        """Take note of files that became unreadable; UserError when they are too many."""
        new = set(more) - set(self.unreadable)
        if new:
            self.unreadable = sorted([*self.unreadable, *new])
            self._check()

    def describe(self) -> str:
        """One line on what was found."""
        counts = [sum(p.domain == d for p in self.photos) for d in range(len(self.domains))]
        domains = ", ".join(f"{n} {label}" for n, label in zip(counts, self.domains, strict=True))
        return (
            f"{len(self.photos)} pictures ({domains}), {len(self.held_out)} held out, "
            f"{len(self.unreadable)} unreadable, {self.smaller} smaller than the crop, "
            f"{'in memory' if self.in_memory else 'read when needed'}"
            + (f"; {told_over(self.passed_over)}" if self.passed_over else "")
        )

    def report(self) -> dict[str, Any]:
        """The same for the run folder, with every unreadable file and its reason."""
        return {
            "sources": list(self.config.sources),
            "domains": self.domains,
            "pictures": len(self.photos),
            "smaller_than_the_crop": self.smaller,
            "held_out": list(map(str, self.held_out)),
            "unreadable": [vars(bad) for bad in self.unreadable],
            "passed_over": self.passed_over,
        }

    def _open(self, photo: Photo) -> Image.Image:
        if self._kept is not None:
            return Image.fromarray(self._kept[photo])
        return photo.read(self._working_copy)

    def _working_copy(self, file: BinaryIO) -> Image.Image:
        short_side = self.config.resize * self.config.zoom[1]
        return working_copy(decode(file, short_side, limits=self._limits), self.config)

    def _check(self) -> None:
        bad, limit = len(self.unreadable), self.config.max_bad_fraction
        if bad > limit * self._found or bad == self._found:
            raise UserError(
                f"{bad} of {self._found} pictures in {', '.join(self.config.sources)} cannot be "
                f"read (at most {limit:.0%} may be), for example {self.unreadable[0].name}: "
                f"{self.unreadable[0].reason}"
            )

    def _read_all(
        self, photos: list[Photo], reader: Callable[..., T], progress: Progress | None
    ) -> dict[Photo, T]:
        """reader's result for every photo it can read; the others are written down.

        By threads, since decoding lets go of the interpreter lock."""

        def attempt(photo: Photo) -> T | BadImageError:
            try:
                return photo.read(reader)
            except BadImageError as error:
                return error

        results = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for done, result in enumerate(pool.map(attempt, photos)):
                if isinstance(result, BadImageError):
                    self.unreadable.append(Unreadable(str(photos[done]), str(result)))
                else:
                    results[photos[done]] = result
                if progress is not None:
                    progress(done + 1, len(photos))
        return results


def find_photos(
    sources: Sequence[str], limits: Limits = LIMITS
) -> tuple[list[Photo], list[str], dict[str, str]]:
    """Every image file of the sources, the domains' names, and why the other files are none.

    UserError as `find_pictures`."""
    photos: list[Photo] = []
    domains: list[str] = []
    others: dict[str, str] = {}
    for domain, source in enumerate(sources):
        place, (names, passed_over) = find_pictures(source, limits)
        domains.append(printable(place.label))
        photos += [Photo(place, domain, name) for name in names]
        others |= {printable(f"{place}/{name}"): why for name, why in passed_over.items()}
    return photos, domains, others


def told_over(passed_over: Mapping[str, str]) -> str:
    """What was passed over, in one line; the example is a picture, if there is one."""
    name, reason = min(passed_over.items(), key=lambda item: item[1] in NO_PICTURE)
    return (
        f"passed over {len(passed_over)} ({kinds_of(list(passed_over))}), for example {name}: "
        f"{reason}"
    )


def _known_size(photo: Photo) -> tuple[int, int] | None:
    """Of a picture whose header need not be read."""
    return photo.place.size(photo.name) if isinstance(photo.place, Shards) else None


def _check_shards(places: Collection[Place], groups: int, batch: int) -> None:
    """UserError unless all shards are there that a process may need; one that reads its own group
    alone is not asked for the others."""
    for place in places:
        if groups == 1 and isinstance(place, Shards) and place.missing:
            raise UserError(
                f"{printable(place)}: {len(place.missing)} of its {len(place.files)} shards are "
                f"missing, for example {place.missing[0].name}"
            )
        if groups > 1 and (not isinstance(place, Shards) or len(place.files) < groups):
            raise UserError(
                f"--data.shard-groups {groups}: expected at least as many tar shards, got "
                f"{printable(place)}"
            )
    if groups > 1 and batch % (2 * groups):
        raise UserError(
            f"--data.shard-groups {groups}: expected --batch to be a multiple of {2 * groups}, "
            f"got {batch}"
        )


def _dealt(photos: list[Photo], groups: int) -> list[list[Photo]]:
    """The pictures by group."""
    dealt: list[list[Photo]] = [[] for _ in range(groups)]
    for photo in photos if groups > 1 else ():
        assert isinstance(photo.place, Shards)
        dealt[photo.place.shard_of(photo.name) % groups].append(photo)
    if not all(dealt) and groups > 1:
        raise UserError(f"--data.shard-groups {groups}: a group has no picture that can be read")
    return dealt if groups > 1 else [photos]


def _held_out(photos: list[Photo], share: float) -> list[Photo]:
    """The pictures to keep from training: decided by their names, so that a set that grows keeps
    most of them."""
    count = min(int(len(photos) * share), _MOST_HELD_OUT, len(photos) - 2)
    if len(photos) < _FEWEST_TO_SPLIT:
        return []
    rank = lambda photo: hashlib.blake2b(os.fsencode(photo.name), digest_size=8).digest()
    chosen = set(sorted(photos, key=rank)[:count])
    return [photo for photo in photos if photo in chosen]
