"""What tests and benchmarks share; nothing else in the package imports it."""
