"""rwm_fast inside other projects' StyleGAN-type code: `import rwm_fast.dropin` before theirs.

From then on the import of a known file (NVIDIA's `torch_utils.ops`, the port's `op`, mmcv's and
basicsr's operators) gives a module of ours with that file's functions, so that no CUDA build
starts. A file whose functions, arguments or defaults are not the known ones is left as it is. Each
is said once, on the logger "rwm_fast". `patch` does the same for layers that are classes; `report`
lists what was done, and what ran.
"""

from rwm_fast.dropin._finder import install, uninstall
from rwm_fast.dropin._report import Report, report
from rwm_fast.dropin.patch import patch

__all__ = ["Report", "install", "patch", "report", "uninstall"]

install()
