"""The GPU engine: the time loop as Triton kernels, any cell plugged in."""
