"""Guards side by side over a grid of learning rates, rows and tasks, on the demo's toy language."""
