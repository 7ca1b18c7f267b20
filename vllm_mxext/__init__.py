"""An LLM inference server with its own engine: one command serves a model on any machine."""
