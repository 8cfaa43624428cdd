"""What is run once where there is an NVIDIA GPU: `python -m benchmarks.gpu --out FOLDER`.

Nothing but torch, Triton and pytest is needed. `__main__` has the parts and their order,
`benchmarks.worker` is the process that measures, `supervise` starts another where one dies,
`outside` has the parts that other programs do. Everything found so far is in one file.
"""
