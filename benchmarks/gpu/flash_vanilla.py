"""pretrain_phd.py with our flash attention for vanilla models too.

Without Transformer Engine Megatron has only attention that writes out all scores, which is no baseline to
compare with. At K = 1 ours is one causal flash call.
"""

import pretrain_phd  # first: it prepares torch for Megatron on a machine without a GPU

# isort: split

from phd.megatron import transformer_config

if __name__ == "__main__":
    transformer_config.needs_phd_attention = lambda *args: True
    pretrain_phd.main()
