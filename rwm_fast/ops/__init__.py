"""The operators: one folder each, with its contract, its reference, its derivative and its backends."""
