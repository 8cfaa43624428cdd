"""Floor 2: layers and blocks, in the manners of torch.nn."""
