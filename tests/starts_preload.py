"""What the fork server of tests/starts.py imports, once."""

import torch

torch.set_num_threads(1)

import phd.model  # noqa: E402, F401 (before Megatron)
import pretrain_phd  # noqa: E402, F401
