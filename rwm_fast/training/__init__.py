"""The method as training steps, and the loop, logs and checkpoints around them."""
