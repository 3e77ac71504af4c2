"""Trained models in other formats, for use without this package."""
