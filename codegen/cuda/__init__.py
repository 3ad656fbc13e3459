"""Kernels for NVIDIA GPUs, written once and lowered twice: to CUDA, and to the CPU, where tests read the numbers.

`kernel` says what a kernel and a family of kernels are, `emitter` is the vocabulary they are written in.
"""
