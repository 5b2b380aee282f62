"""One adapter per engine on a GPU, each a module with ``open_engine(job) -> Opened``.

Input and output stay in the GPU's memory; ``run`` puts an inference on a stream, ``finish`` waits
for the stream.
"""
