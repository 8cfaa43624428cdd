"""Benchmarks of rwm_fast against eager PyTorch and torch.compile: `pytest benchmarks
--benchmark-only` on a CPU, `python -m benchmarks.gpu` on a GPU."""
