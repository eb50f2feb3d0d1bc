"""From the graphs of a bundle to engines for a device."""
