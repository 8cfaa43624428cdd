"""Benchmarks of rwm_fast against eager PyTorch and torch.compile; see README.md in this folder."""
