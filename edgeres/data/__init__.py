"""From images to network inputs: sources, the preprocessing contract, and batches made of both."""
