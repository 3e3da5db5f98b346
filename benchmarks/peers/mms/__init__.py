"""Handlers for Multi Model Server: `handle(data, context)`, called once without data to load the model."""
