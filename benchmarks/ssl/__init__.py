"""Structured sparsity learning on real data; `__main__` is the command."""
