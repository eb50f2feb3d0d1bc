"""Bundles in registries of containers: pushed as they are, and pulled with every byte checked."""
