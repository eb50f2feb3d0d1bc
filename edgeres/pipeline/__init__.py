"""The steps from a trained model to a verified bundle: the whole build, and each step on its own."""
