"""Text on one side, token ids on the other: what a request is before and after the engine core."""
