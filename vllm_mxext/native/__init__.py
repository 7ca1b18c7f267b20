"""The native engine: scheduler, KV cache, kernels and models; it knows token ids only, never text."""
