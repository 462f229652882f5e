"""The CPU benchmark suite: our layers beside every other engine that can run them, on the same cases, weights and threads."""
