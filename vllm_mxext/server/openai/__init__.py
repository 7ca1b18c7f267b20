"""The OpenAI API: request models, and what each endpoint does with them."""
