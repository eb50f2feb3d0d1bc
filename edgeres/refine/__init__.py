"""Recover accuracy: rewrites before quantization, corrections after it, and the recipe that keeps those that help."""
