"""Floor 3: the four networks, the editor that uses two of them, and their weights on disk."""

from rwm_fast.models.codes import Codes
from rwm_fast.models.discriminators import ImageDiscriminator, PatchDiscriminator
from rwm_fast.models.editor import RegionEditor
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator
from rwm_fast.models.weights import WeightsError, load_weights, read_config, save_weights

__all__ = [
    "Codes",
    "Encoder",
    "Generator",
    "ImageDiscriminator",
    "PatchDiscriminator",
    "RegionEditor",
    "WeightsError",
    "load_weights",
    "read_config",
    "save_weights",
]
