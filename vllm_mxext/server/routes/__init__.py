"""Paths and methods: each route reads its request and calls the class that serves it."""
