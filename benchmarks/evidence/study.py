"""The study as values, fixed before any result: sizes, arms, lengths, orders, and the rules that decide.

docs/evidence.md gives the reasons in words. A number that is changed after a branch has started makes a new
study.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from phd.compare.statistics import Criterion, pairs_needed
from phd.rules.costs import Shape, dense_products
from phd.rules.variant import Variant

CRITERION = Criterion(alpha=0.01, power=0.9)
CLAIM = 0.005
"""The smallest difference worth a claim, in nats a token: the field's bar for a record."""
FIRST_ORDERS = (1, 2, 3)
MOST_ORDERS = 12

VANILLA = "vanilla"
PHD = "PHD-CSWA-2-16-32"
MORE_ARMS = (
    f"{PHD}+vector",
    *("PHD-CSWA-3-16-32", "PHD-CSWA-3-16-32+vector", "PHD-CSWA-3-16-32+table"),
    "naive-2-consecutive+table",
)
PRIMARY = f"{PHD}+table"

SHORT, LONG = 0.1, 0.3
"""Branch lengths, of the trunk's iterations: LONG_ARMS have both, the others the shorter one."""
LONG_ARMS = (VANILLA, PRIMARY, PHD)

VOCABULARY, LENGTH = 512, 256
TOKENS_PER_ITERATION = 16 * LENGTH

COMMON = f"""
    --group-query-attention --seq-length {LENGTH} --max-position-embeddings {LENGTH}
    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear
    --attention-dropout 0 --hidden-dropout 0 --init-method-std 0.02
    --micro-batch-size 16 --global-batch-size 16
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
    --eval-interval 1000000 --eval-iters 64 --log-interval 10 --split 98,2,0
    --reset-attention-mask
"""


LONGER = "vanilla-longer"
"""The arm of a vanilla branch that is given the FLOPs of PHD's: more iterations of more text."""
AGAIN = "vanilla-again"
"""The noise floor: vanilla on the same batches, in micro-batches of half the size: other orders of sums."""

PLANNED = "2026-12-01 11:54:00"
"""No branch starts before: the plan is committed by then."""


@dataclass(frozen=True)
class Branches:
    """One call of `phd branch`: an arm of a length, with every order."""

    arm: str
    share: float
    variant: str
    iterations: int
    flags: tuple[str, ...] = ()
    """Of pretrain_phd.py, beside the trunk's."""


def _warm_up(arm: str, iterations: int) -> tuple[str, ...]:
    """Flags: a copy embedding, whose moments are new, comes to its full rate over a tenth of the branch."""
    if Variant.parse(arm).embedding == "none":
        return ()
    return ("--phd-copy-embedding-warmup-iters", str(round(iterations / 10)))


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A vanilla model trained at a constant rate, of which branches are made."""

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    parameters: int
    """With the vocabulary of 512."""
    tokens_per_parameter: int
    lr: float
    """Chosen on vanilla alone, before the trunks were trained (rates.py)."""
    more_arms: tuple[str, ...] = ()
    """Beside LONG_ARMS, at the shorter length."""
    seed: int = 1

    @property
    def iterations(self) -> int:
        """A whole number of hundreds: the last one is saved."""
        tokens = self.parameters * self.tokens_per_parameter
        return math.ceil(tokens / TOKENS_PER_ITERATION / 100) * 100

    @property
    def branches(self) -> list[Branches]:
        """The primary comparison first."""
        short, long = (round(share * self.iterations) for share in (SHORT, LONG))
        return [
            *(Branches(arm, LONG, arm, long, _warm_up(arm, long)) for arm in LONG_ARMS),
            *(
                Branches(arm, SHORT, arm, short, _warm_up(arm, short))
                for arm in (*LONG_ARMS, *self.more_arms)
            ),
            Branches(LONGER, SHORT, VANILLA, round(short * self.flops_ratio(PHD))),
            Branches(AGAIN, SHORT, VANILLA, short, ("--micro-batch-size", "8")),
        ]

    def vanilla(self, share: float) -> Branches:
        """What branches of this length are compared with."""
        (found,) = [each for each in self.branches if (each.arm, each.share) == (VANILLA, share)]
        return found

    @property
    def longest(self) -> int:
        """Iterations of the longest branch: the text of all is ordered for it."""
        return max(branches.iterations for branches in self.branches)

    def flops_ratio(self, arm: str) -> float:
        """Training FLOPs per token, to vanilla's."""
        shape = Shape(
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_query_groups=self.groups,
            kv_channels=self.hidden // self.heads,
            vocab_size=VOCABULARY,
            mlp_products=[dense_products(self.hidden, self.ffn, True)] * self.layers,
        )
        ours, vanilla = (
            Variant.parse(name).flops_per_token(shape, LENGTH, prune_last_layer=name != VANILLA)
            for name in (arm, VANILLA)
        )
        return ours / vanilla

    def flags(self, tokenizer: str, data: str) -> list[str]:
        """Of pretrain_phd.py, less the run's folder."""
        return shlex.split(f"""
            --num-layers {self.layers} --hidden-size {self.hidden} --ffn-hidden-size {self.ffn}
            --num-attention-heads {self.heads} --num-query-groups {self.groups} {COMMON}
            --tokenizer-type SentencePieceTokenizer --tokenizer-model {tokenizer} --data-path {data}
            --make-vocab-size-divisible-by 64 --variant {VANILLA} --seed {self.seed}
            --lr {self.lr} --lr-decay-style constant --lr-warmup-iters 100
            --train-iters {self.iterations} --save-interval 500 --keep-last-checkpoints 2
        """)


SMALLEST = Trunk(
    name="0.05M", layers=3, hidden=32, ffn=88, heads=2, groups=1, parameters=51_168,
    tokens_per_parameter=100, lr=1.2e-2, more_arms=MORE_ARMS,
)  # fmt: skip
TRUNKS = (
    SMALLEST,
    Trunk(
        name="0.2M", layers=4, hidden=64, ffn=176, heads=4, groups=2, parameters=217_664,
        tokens_per_parameter=100, lr=4e-3, more_arms=MORE_ARMS,
    ),
    # another start and another order of the trunk's text: tells what the first trunk alone has done
    replace(SMALLEST, name="0.05M-second", more_arms=(), seed=2),
    Trunk(
        name="0.5M", layers=4, hidden=96, ffn=264, heads=4, groups=2, parameters=464_736,
        tokens_per_parameter=50, lr=6e-3,
    ),
    Trunk(
        name="1M", layers=5, hidden=128, ffn=352, heads=4, groups=2, parameters=988_544,
        tokens_per_parameter=20, lr=5e-3,
    ),
)  # fmt: skip


def orders_needed(differences: Sequence[float]) -> int:
    """Orders of a trunk's branches, by the spread of the primary difference over FIRST_ORDERS: those that
    find a third of CLAIM with the criterion's power, between 3 and MOST_ORDERS.

    Args:
        differences: of the primary arm to vanilla, one for each of FIRST_ORDERS; their mean is not looked at.
    """
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((each - mean) ** 2 for each in differences) / (len(differences) - 1))
    needed = pairs_needed(CLAIM / 3, spread, CRITERION) or MOST_ORDERS
    return min(max(needed, len(FIRST_ORDERS)), MOST_ORDERS)
