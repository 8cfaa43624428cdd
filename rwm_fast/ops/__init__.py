"""The operators: one folder each, with contract, reference, derivative and backends."""
