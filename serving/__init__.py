"""Serving: read LIBER features online and score candidates with a trained run."""
