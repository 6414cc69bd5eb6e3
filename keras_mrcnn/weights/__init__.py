"""Weights of other implementations: read, renamed, converted, loaded."""
