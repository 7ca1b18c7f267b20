"""Pure ASGI middlewares: telemetry, API keys, readiness gate, body limit."""
