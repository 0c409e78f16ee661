"""`phd eval`: EleutherAI's lm-evaluation-harness, with log-likelihoods computed from the KV caches."""
