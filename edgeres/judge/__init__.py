"""Gates, checks and comparisons of builds: makes the report document from measurements."""
