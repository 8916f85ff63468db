"""Random tampering with everything that a promotion leaves behind."""
