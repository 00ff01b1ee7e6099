"""This project's speed and memory beside plain PyTorch's: python -m benchmarks.run."""
