"""Your own loss on the package's networks, in a training loop of your own.

Encoder and generator learn to reconstruct landscapes and to give a swap the mean colours of its
style picture: `palette` is the loss that the package does not have. Losses take pictures and
know no network, so a new one is a function. CONTRIBUTING.md tells how to add it to the package.
"""

import argparse

import torch

from rwm_fast import Encoder, Generator
from rwm_fast.config import preset
from rwm_fast.data import landscapes
from rwm_fast.losses import reconstruction


def palette(painted, style_picture):
    """mean |mean colour of a band − that of the style picture|; images [N, 3, H, W]."""
    bands = lambda image: torch.nn.functional.adaptive_avg_pool2d(image, (4, 1))
    return (bands(painted) - bands(style_picture).detach()).abs().mean()


def main(steps):
    torch.manual_seed(0)
    model = preset("demo").model
    encoder, generator = Encoder(model), Generator(model)
    parameters = [*encoder.parameters(), *generator.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3, betas=(0.5, 0.99))
    for step in range(steps):
        seeds = range(8 * step, 8 * step + 8)
        image, _ = landscapes.render(
            landscapes.content(seeds), landscapes.style(seeds), model.image_size
        )
        content, style = encoder(image)
        reconstructed = generator(content, style)
        swapped = generator(content, style.roll(1, 0))
        terms = {
            "reconstruction": reconstruction(reconstructed, image),
            "palette": palette(swapped, image.roll(1, 0)),
        }
        optimizer.zero_grad()
        (10 * terms["reconstruction"] + terms["palette"]).backward()
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            print(step, {name: round(value.item(), 3) for name, value in terms.items()})
    return terms


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    main(parser.parse_args().steps)
