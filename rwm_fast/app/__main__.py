"""A page to edit photos in: `python -m rwm_fast.app`, then open the address that it prints.

Paint or click regions, choose a style for each, press Edit. Needs gradio: pip install
'rwm_fast[app]'. Uploads and results lie in a folder of their own, which goes when the command ends.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rwm_fast.app import metadata
from rwm_fast.app.command_line import parse_into
from rwm_fast.app.studio import COLOURS, PICTURES, Studio
from rwm_fast.data.formats import Limits
from rwm_fast.device import prepare
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.models import RegionEditor
from rwm_fast.models.pretrained import DEFAULT, resolve


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    checkpoint: str = DEFAULT  # name of the package's own weights, run folder, or a weights file
    host: str = "127.0.0.1"  # this machine alone; 0.0.0.0 = whoever reaches it
    port: int = 7860  # 0 = any that is free
    max_regions: int = 4  # that a photo may have
    max_megapixels: float = 50.0  # larger pictures are refused,
    max_mb: float = 50.0  # and so are larger files
    max_queue: int = 20  # requests that wait; further ones are refused
    device: str = "auto"  # cpu, cuda or cuda:N
    precision: str = "auto"  # fp32, bf16 or fp16

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--port", self.port, 0, 65535),
            ("--max-regions", self.max_regions, 1, len(COLOURS)),
            ("--max-queue", self.max_queue, 1, 10_000),
            ("--max-mb", self.max_mb, 0.1, 10_000),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name}: expected {least} to {most}, got {value}")


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_into(Arguments, given, "app", __doc__)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'rwm_fast[app]'")
    limits = Limits(max_megapixels=arguments.max_megapixels)
    device, dtype = prepare(arguments.device, arguments.precision)
    editor = RegionEditor.load(arguments.checkpoint, device=device, dtype=dtype)
    weights = metadata.digest_of(resolve(arguments.checkpoint))
    told = Arguments(checkpoint=arguments.checkpoint)
    describe = functools.partial(metadata.texts, told, "app", weights)
    # SIGTERM ends the command as Ctrl-C does, so that the folder goes then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="rwm_fast-", ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        uploads = folder / "uploads"
        # Gradio reads them when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_OFFLINE"] = "1"
        from rwm_fast.app import page, server

        on = server.listening(arguments.host, arguments.port)
        studio = Studio(editor, [uploads, PICTURES], describe, limits, arguments.max_regions)
        blocks = page.build(studio, folder / "results", arguments.max_queue)
        local = arguments.host in server.LOOPBACK
        size, regions = int(arguments.max_mb * 1e6), arguments.max_regions
        app = server.application(blocks, regions, size, uploads, local)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"http://{host}:{on.getsockname()[1]}/", flush=True)
        if not local:
            print("whoever reaches this machine can use the page", file=sys.stderr)
        try:
            server.serve(app, on)
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
