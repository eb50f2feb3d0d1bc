"""A bundle built and verified on another machine over ssh."""
