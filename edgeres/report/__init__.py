"""Renderers of a finished report document: terminal, HTML, Markdown, JUnit."""
