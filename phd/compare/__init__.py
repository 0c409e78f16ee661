"""Compare runs of pretrain_phd.py by what they logged: loss against tokens and against training FLOPs."""
