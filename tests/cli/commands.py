"""A command run in this process, and the settings of the smallest run."""

import importlib

TINY = """
--model.image-size 16 --model.encoder-channels 8 --model.style-channels 8 --model.style-dim 8
--model.head-channels 8 --model.up-channels 8 --model.tail-channels 8
--model.discriminator-channels 8 8 --model.discriminator-hidden 8 --model.patch-size 8
--model.patch-channels 8 8 --model.patch-feature-channels 8 --model.patch-hidden 8
--data.resize 16 --data.pool 12 --batch 4 --train.threads 1 --device cpu --precision fp32
""".split()


def run(command: str, *arguments) -> int:
    """The exit status of a command run in this process."""
    module = importlib.import_module(f"rwm_fast.{command}")
    try:
        return module.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
