"""rwm_fast: region-wise style manipulation of photos, and the fused operators behind it.

Names are imported when they are first used: `import rwm_fast` costs nothing and touches nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "modulated_conv2d": "rwm_fast.ops.modulated_conv2d",
    "masked_l1": "rwm_fast.ops.masked_l1",
    "crop_patches": "rwm_fast.ops.crop_patches",
    "sample_boxes": "rwm_fast.ops.crop_patches",
    "conv2d_bias_act": "rwm_fast.ops.conv2d_bias_act",
    "conv2d_resample": "rwm_fast.ops.conv2d_resample",
    "bias_act": "rwm_fast.ops.bias_act",
    "upfirdn2d": "rwm_fast.ops.upfirdn2d",
    "use_backend": "rwm_fast.ops._dispatch",
    "explain": "rwm_fast.ops._dispatch",
    "absent_gradients": "rwm_fast.ops._absent",
    "Encoder": "rwm_fast.models.encoder",
    "Generator": "rwm_fast.models.generator",
    "ImageDiscriminator": "rwm_fast.models.discriminators",
    "PatchDiscriminator": "rwm_fast.models.discriminators",
    "RegionEditor": "rwm_fast.models.editor",
    "Config": "rwm_fast.config",
    "build_info": "rwm_fast._build",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:  # what __getattr__ gives, for type checkers and editors
    from rwm_fast._build import build_info as build_info
    from rwm_fast.config import Config as Config
    from rwm_fast.models.discriminators import ImageDiscriminator as ImageDiscriminator
    from rwm_fast.models.discriminators import PatchDiscriminator as PatchDiscriminator
    from rwm_fast.models.editor import RegionEditor as RegionEditor
    from rwm_fast.models.encoder import Encoder as Encoder
    from rwm_fast.models.generator import Generator as Generator
    from rwm_fast.ops._absent import absent_gradients as absent_gradients
    from rwm_fast.ops._dispatch import explain as explain
    from rwm_fast.ops._dispatch import use_backend as use_backend
    from rwm_fast.ops.bias_act import bias_act as bias_act
    from rwm_fast.ops.conv2d_bias_act import conv2d_bias_act as conv2d_bias_act
    from rwm_fast.ops.conv2d_resample import conv2d_resample as conv2d_resample
    from rwm_fast.ops.crop_patches import crop_patches as crop_patches
    from rwm_fast.ops.crop_patches import sample_boxes as sample_boxes
    from rwm_fast.ops.masked_l1 import masked_l1 as masked_l1
    from rwm_fast.ops.modulated_conv2d import modulated_conv2d as modulated_conv2d
    from rwm_fast.ops.upfirdn2d import upfirdn2d as upfirdn2d


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rwm_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
