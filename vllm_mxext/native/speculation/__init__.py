"""Draft tokens: where they are found, how often they are right, and whether they pay (no torch)."""
