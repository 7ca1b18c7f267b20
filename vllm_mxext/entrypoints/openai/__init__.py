"""The OpenAI-compatible server as a program."""
