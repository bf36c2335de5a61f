"""refgpt beside the other engines that run such a model on a CPU: ``python -m benchmarks.peers --help``."""
