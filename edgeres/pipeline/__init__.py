"""The pipeline from a trained model to a bundle, and the steps that enter it at a later door."""
