"""How far a run is: by images seen, or by a budget of seconds that slow machines keep too."""

import time
from collections.abc import Callable

from rwm_fast.config import TrainConfig


class Clock:
    """Progress from 0 to 1 and seconds spent, kept across resumes.

    With `config.seconds` > 0 progress is the share of that time, so a slow machine does fewer steps
    of the same schedule; it is also done when `config.kimg` is reached. Otherwise progress is the
    share of `config.kimg`, and the same seed gives the same run.
    """

    def __init__(self, config: TrainConfig, now: Callable[[], float] = time.monotonic):
        self.config, self._now = config, now
        self._before = 0.0  # seconds of earlier sittings
        self._started: float | None = None  # when this sitting's first step began

    def start(self) -> None:
        """At the first step: opening pictures is no training. Later calls change nothing."""
        if self._started is None:
            self._started = self._now()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the first step, those of earlier sittings included."""
        return self._before + (0.0 if self._started is None else self._now() - self._started)

    def progress(self, nimg: int) -> float:
        by_images = nimg / (self.config.kimg * 1000)
        if not self.config.seconds:
            return min(by_images, 1.0)
        return min(max(self.seconds / self.config.seconds, by_images), 1.0)

    def done(self, nimg: int) -> bool:
        return self.progress(nimg) >= 1

    def remaining(self, nimg: int, images_per_second: float) -> float:
        """Seconds left at the present speed."""
        left = max(self.config.kimg * 1000 - nimg, 0) / max(images_per_second, 1e-9)
        if self.config.seconds:
            left = min(left, max(self.config.seconds - self.seconds, 0))
        return left

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        # This sitting counts from its first step; loading adds the earlier ones.
        self._before = state["seconds"]
