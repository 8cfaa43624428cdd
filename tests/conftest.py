"""Which rwm_fast is tested: the one this process imports, in every process a test starts."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import chromium as chromium  # a fixture
from exported import exported as exported  # another

import rwm_fast

if not torch.cuda.is_available():
    collect_ignore = ["gpu"]


def pytest_configure():
    # `python -m rwm_fast.train` prefers the current folder, which here is the source tree; these
    # two keep it on the package under test (PYTHONSAFEPATH needs Python 3.11).
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = str(Path(rwm_fast.__file__).parent.parent)
    # As in a terminal: shells start what runs in the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart(collector):
    """What a file draws when it is read is the same whichever files were read before it,"""
    if isinstance(collector, pytest.Module):
        seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """and so is what a test or a fixture draws."""
    seed()


def seed():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def pytest_report_header():
    build = rwm_fast.build_info()
    return [
        f"rwm_fast {build['version']} in {Path(rwm_fast.__file__).parent}",
        f"native: {build['cpu']} (CPU), {build['cuda']} (CUDA)",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    ]
