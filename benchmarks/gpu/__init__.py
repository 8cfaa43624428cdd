"""What is run once where there is an NVIDIA GPU: `python -m benchmarks.gpu --out FOLDER`.

Builds the CUDA module, proves the kernels, measures the ceilings, the operators, the layers and the
networks, in parts that go on where an earlier run stopped. Nothing but torch, Triton and pytest is
needed. `__main__` has the parts and their order; `worker` is the process that measures; everything
found so far is in one file (`store`), from which `report` makes the table.
"""
