"""Layers a decoder is made of, over the `Kernels` interface."""
