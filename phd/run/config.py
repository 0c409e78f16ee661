"""The flags of pretrain_phd.py that say where a run lives."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class RunConfig:
    """The folder of a run."""

    run_dir: str | None = None
    """The folder of this run, which one job at a time may hold: checkpoints/ (--save and --load),
    tensorboard/, index-cache/, wandb/, metrics.jsonl, phd_run.json, status.json. Each of the named flags may
    still be given. Without it the folder of --save holds the record, or that of --tensorboard-dir."""

    keep_last_checkpoints: int | None = None
    """Keep this many of the newest checkpoints and remove older ones after each save. All are kept without
    it. At least 2, so that there is one to fall back on."""

    sample_prompts: list[str] | None = None
    """At every validation, let the model continue these texts, greedily, and record what it writes."""

    sample_tokens: int = 32
    """So many tokens for each of --sample-prompts."""

    def __post_init__(self) -> None:
        if self.keep_last_checkpoints is not None and self.keep_last_checkpoints < 2:
            raise ValueError(
                f"--keep-last-checkpoints {self.keep_last_checkpoints} would leave nothing to fall back on "
                "should the newest be damaged: use 2 or more"
            )
