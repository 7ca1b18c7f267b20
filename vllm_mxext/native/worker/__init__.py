"""Everything that touches the device: memory plan, KV cache, persistent batch, model runner."""
