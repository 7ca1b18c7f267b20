"""Structured output: from a constraint to the tokens that may come next (llguidance; no torch)."""
