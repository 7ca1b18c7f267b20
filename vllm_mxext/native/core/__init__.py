"""The heart of the native engine: requests, KV blocks and the scheduler, in plain Python without torch."""
