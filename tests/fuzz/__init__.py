"""Malformed inputs for everything that reads what others wrote: each ends in a result or a typed error."""
