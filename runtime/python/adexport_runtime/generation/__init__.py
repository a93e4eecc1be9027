"""Generating text: what is asked for, how the next token is picked, and how ids become text."""
