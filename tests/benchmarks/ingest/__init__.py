"""Ingestion at size: pace and memory beside `datasets`, growth, and the same digests however it is run."""
