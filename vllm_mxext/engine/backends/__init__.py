"""Implementations of `EngineClient`."""
