"""Guardwire: a gRPC moderation server for text that a language model is writing right now."""

__version__ = "0.1.0"
