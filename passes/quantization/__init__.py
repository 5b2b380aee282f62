"""Parts of the ``quantize`` pass: structure, ranges, weights, equalisation, synthetic inputs."""
