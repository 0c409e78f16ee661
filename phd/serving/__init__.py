"""transformers' server with a guard in front."""
