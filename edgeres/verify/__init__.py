"""Measurement of candidates against the FP32 reference: answers on images, latency, noise layer by layer."""
