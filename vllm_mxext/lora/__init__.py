"""Adapter files: what they hold, whether they fit a model, and their conversion; numpy only, no torch."""
