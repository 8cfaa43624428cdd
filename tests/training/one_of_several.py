"""A process of a job, started by test_processes.py: `python one_of_several.py WHAT CONFIG OUT`."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from rwm_fast.config import Config
from rwm_fast.data.loader import Loader
from rwm_fast.data.photos import Unreadable
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.training import heartbeat, run
from rwm_fast.training.loop import step_generator
from rwm_fast.training.processes import ALONE, Processes, joined
from rwm_fast.training.trainer import Trainer

STEPS = 3


def steps(config: Config, job: Processes = ALONE) -> list:
    """Terms and networks after each of some steps on drawn pictures; of the second one process
    makes gradients that are not finite."""
    trainer, found = Trainer(config, torch.device("cpu"), torch.float32, job), []
    batch = config.train.batch
    for k in range(STEPS):
        source = torch.Generator().manual_seed(k)
        image = torch.rand(batch, 3, 16, 16, generator=source) * 2 - 1
        if k == 1:
            image[-1] = float("nan")
        image = image[list(job.share.rows(batch))]
        terms = trainer.step(image, batch * k, 0.5, step_generator(0, batch * k))
        nets = {n: dict(net.state_dict()) for n, net in trainer.nets.as_dict().items()}
        nets = {n: {m: t.clone() for m, t in net.items()} for n, net in nets.items()}
        found.append((terms, nets, trainer.skipped.item()))
    return found


def variants(config: Config) -> dict[str, Config]:
    vary = lambda **train: replace(config, train=replace(config.train, **train))
    return {
        "two pairs each": vary(batch=8),
        "one pair each": vary(batch=4),
        "in turns": vary(batch=4, step_order="alternate"),
        "reconstruction alone": vary(batch=4, reconstruction_fraction=1.0),
        "two slices": vary(batch=8, accumulate=2),
    }


@reports_user_errors
def main(what: str, config: Config, out: Path) -> None:
    if what == "steps":
        with joined() as job:
            found = {name: steps(each, job) for name, each in variants(config).items()}
            torch.save(found, out.with_name(f"{out.name}-{job.rank}"))
        return
    mine = os.environ["RANK"] == ("0" if what == "first stopped" else "1")
    heartbeat.SECONDS = 0.25
    read, made = Loader.__next__, []

    def next_batch(self):
        made.append(0)
        if what == "unreadable" and mine and len(made) == 3:
            raise UserError("no pictures any more")
        if what == "spoilt" and len(made) == 3:  # one picture of each, by one that both have
            self._tell(
                [Unreadable(f"{os.environ['RANK']}.jpg", "gone"), Unreadable("0.jpg", "gone")]
            )
        return read(self)

    step = Trainer.step

    def killed(self, image, nimg, *rest):
        if what == "killed" and mine and nimg == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if "stopped" in what and nimg == 4 and mine:  # slow is not silent
            time.sleep(heartbeat.SECONDS * (heartbeat.MISSED + 3))
        if "stopped" in what and nimg == 8 and mine:
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "asked" and mine and nimg == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, image, nimg, *rest)

    Loader.__next__, Trainer.step = next_batch, killed
    run.REPORT_PAIRS = run.SAMPLE_PAIRS = 4
    if run.train(config, out) is None:
        sys.exit(130)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Config.from_json(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
