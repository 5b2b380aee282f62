"""What the compression passes share: choice of layers, masks, statistics of inputs, re-fitting."""
