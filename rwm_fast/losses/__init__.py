"""Floor 4: losses. Tensors in, tensors out; they know no network."""

from rwm_fast.losses.adversarial import fake_loss, generator_loss, real_loss
from rwm_fast.losses.alignment import content_alignment, edge, reconstruction
from rwm_fast.losses.consistency import CodeConsistency, code_consistency
from rwm_fast.losses.regularizers import r1_penalty

__all__ = [
    "CodeConsistency",
    "code_consistency",
    "content_alignment",
    "edge",
    "fake_loss",
    "generator_loss",
    "r1_penalty",
    "real_loss",
    "reconstruction",
]
