"""Tells whether anything has changed since the champion was promoted."""
