"""Servers that a user has registered: where they are, how they are started, whether they run."""
