"""Makes the built-in demonstration model and its adapters from nothing but seeded generators."""
