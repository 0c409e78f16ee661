"""Text in, Megatron's .bin/.idx out. Stands alone: imports Megatron's indexed dataset, never phd."""
