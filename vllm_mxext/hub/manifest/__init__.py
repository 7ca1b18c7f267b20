"""Manifests: which models there are, and in which ways each can be run."""
