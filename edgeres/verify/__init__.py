"""Candidates against the FP32 reference: answers on images, latency, and noise layer by layer."""
