"""Kernel generators: frozen specs in, :class:`dlcc.lowering.kernel.KernelPlan` out.

They know shapes, dtypes and instruction sets, and nothing of the IR. Integer kernels follow the
numbers contract: int32 accumulation, one f32 multiplier per channel, round half to even.
"""
