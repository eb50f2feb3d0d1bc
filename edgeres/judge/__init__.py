"""Gates, checks and comparisons: from measurements to a finished report document."""
