"""One thread, process time: what a shared or busy machine disturbs least."""

import torch


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every case, bfloat16 too")


def pytest_configure(config):
    torch.set_num_threads(1)
