"""What recovers accuracy: rewrites before quantization, corrections after it, and the recipe that keeps what helps."""
