"""Reads reasoning and tool calls out of generated text, as it comes."""
