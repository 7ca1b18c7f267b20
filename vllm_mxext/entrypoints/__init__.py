"""Composition roots: where configuration becomes running parts."""
