"""Records how a run ended, also when it failed."""
