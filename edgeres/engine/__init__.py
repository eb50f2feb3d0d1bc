"""Build engines for a device from the graphs of a bundle."""
