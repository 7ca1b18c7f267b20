"""Compute kernels of the native engine: a compiled CPU library and plain PyTorch behind one interface."""
