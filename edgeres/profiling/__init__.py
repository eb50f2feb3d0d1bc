"""Where an inference spends its time: the layers of what runs, with their times and types."""
