"""Floor 6: what people run and see."""
