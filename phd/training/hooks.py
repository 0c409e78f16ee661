"""Hooks of the training loop: the metrics record, tokens/s, sample texts, and which checkpoints are kept."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.training import get_tensorboard_writer, get_wandb_writer

from phd.checkpoint.choice import agree_on_checkpoint
from phd.checkpoint.growth import resolve_additions
from phd.checkpoint.saves import Saves
from phd.megatron.transformer_config import PHDTransformerConfig
from phd.run.files import read_json
from phd.run.record import BRANCH_FILE, MFU, ROPE_SCALE, ROPE_SHIFT, TFLOPS, THROUGHPUT, write_run_info
from phd.run.recorder import Recorder
from phd.run.status import RunStatus
from phd.training.arguments import Start
from phd.training.copy_norms import copy_embedding_norms
from phd.training.e2_llm import draw
from phd.training.metrics import RunMetrics, about_run, count_parameters
from phd.training.partial import (
    describe_trained,
    refuse_empty_shards,
    refuse_unknown_words,
    trained_parameters,
)
from phd.training.run_folder import run_folder
from phd.training.samples import continue_prompts
from phd.training.shares import DataShares


class TrainingHooks:
    """Keeps the record of a run, on the rank that logs, the last; a LoopHooks of phd/megatron/loop.py."""

    def __init__(self, start: Start, config: PHDTransformerConfig) -> None:
        """The arguments of ``start`` are global already."""
        self.args = args = start.args
        self.config = config
        self.metrics = RunMetrics(args, config)
        self.shares = DataShares(args)
        self.recorder: Recorder | None = None
        """Takes the scalars that Megatron logs."""
        self._saves = Saves(args)
        self._folder = run_folder(args)
        self._step_asked = start.step_asked
        self._about: dict[str, Any] = {}
        self._trained: dict[str, int] = {}
        self._model_chunks: list[torch.nn.Module] = []
        self._begun = False
        self._loaded_samples: int | None = None
        # Samples, tokens and FLOPs before this start, where they are not today's lengths and costs.
        self._before: tuple[int, int, float] = (0, 0, 0.0)
        self._wandb = get_wandb_writer()
        if self._folder and args.rank == args.world_size - 1:
            self.recorder = Recorder(self._folder, get_tensorboard_writer(), self._wandb)

    def unwrapped(self, model_chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """The model is built and not wrapped yet. Every rank must call it.

        Raises:
            ValueError: --train-only names what the model has not.
        """
        if self.config.trained_words:
            self._trained = trained_parameters(model_chunks)
            refuse_unknown_words(self.config.trained_words, self._trained)
            if self.args.rank == 0:
                print(describe_trained(self._trained, self.args), flush=True)
        return model_chunks

    def built(self, model_chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """The model is built, and its checkpoint not loaded yet. Every rank must call it."""
        agree_on_checkpoint(self.args, self._step_asked)
        resolve_additions(self.args)
        self._about = about_run(self.args, self.config, self.metrics, count_parameters(model_chunks))
        if self._trained:
            refuse_empty_shards(model_chunks, self.args)
            self._about["trained_parameters"] = self._trained
        self._model_chunks = model_chunks
        return model_chunks

    def loaded(self) -> None:
        """The checkpoint, if any, is loaded, and training begins."""
        self._loaded_samples = self.args.consumed_train_samples

    def begin(self) -> None:
        """Called before the first line of the record; later calls do nothing.

        Raises:
            ValueError: the record that is there is damaged.
        """
        if self._begun:
            return
        self._begun = True
        args = self.args
        # With --train-samples Megatron has counted the iterations by now.
        about = self._about | {"train_iters": args.train_iters}
        if self._folder and args.rank == 0:
            RunStatus(self._folder, Path(args.save or self._folder)).counted(args.train_iters)
        if self._folder and self.recorder is not None:
            branch = read_json(self._folder / BRANCH_FILE)
            self._count_from(self.recorder.resume(args.iteration) or branch)
            about |= {"branch": branch} if branch else {}
            write_run_info(self._folder, about, args.iteration)
        if self._wandb is not None:
            del about["arguments"]  # Megatron has told W&B
            self._wandb.config.update({"phd": about}, allow_val_change=True)
            for axis in ("tokens", "flops"):
                self._wandb.define_metric(axis)
            self._wandb.define_metric("*", step_metric="tokens")

    def _count_from(self, last: Mapping[str, Any]) -> None:
        """Go on from the last line of the record, or from a branch's trunk, where that was trained at another
        length or cost.
        """
        samples = self._loaded_samples
        if samples is None or "tokens" not in last or last["iteration"] != self.args.iteration:
            return
        if (last["tokens"], last["flops"]) != self._count(samples):
            self._before = samples, last["tokens"], last["flops"]

    def _count(self, samples: int) -> tuple[int, float]:
        """Tokens and FLOPs after so many samples."""
        samples_before, tokens_before, flops_before = self._before
        tokens = (samples - samples_before) * self.args.seq_length
        return tokens_before + tokens, flops_before + tokens * self.metrics.flops_per_token

    def log(self, iteration: int, seconds_per_iteration: float) -> str:
        """At a log interval: tokens/s and MFU for the record, and as a piece of Megatron's log line; for the
        record also what has become of copy embeddings, and the shares of a blend's data sets. Every rank must
        call it.
        """
        rates = self.metrics.rates(seconds_per_iteration)
        norms = copy_embedding_norms(self.config, self._model_chunks)
        shares = self.shares.until(self.args.consumed_train_samples)
        if self.recorder is not None:
            for name, value in (rates | norms | shares).items():
                self.recorder.add_scalar(name, value, iteration)
        text = f" tokens/s: {rates[THROUGHPUT]:.0f} | PHD TFLOP/s/device: {rates[TFLOPS]:.4g} |"
        return text + (f" MFU: {100 * rates[MFU]:.1f}% |" if MFU in rates else "")

    def trained(self, iteration: int) -> None:
        """An iteration is done and logged."""
        if self.recorder is not None and self.args.rope_max_scale:
            drawn = draw(self.args, iteration)
            self.recorder.add_scalar(ROPE_SCALE, drawn.scale, iteration)
            self.recorder.add_scalar(ROPE_SHIFT, drawn.shift, iteration)
        self._write("train", iteration)

    def evaluated(self, kind: str, iteration: int, model_chunks: list[torch.nn.Module]) -> None:
        """A validation or test is done and logged. Every rank must call it."""
        self._write(kind, iteration)
        if kind == "validation" and self.args.sample_prompts:
            self._write("samples", iteration, samples=continue_prompts(model_chunks[0], self.args))

    def not_evaluated(self, iteration: int) -> None:
        """An evaluation was interrupted."""
        if self.recorder is not None:
            self.recorder.forget()
            print(f"> the evaluation at iteration {iteration} was broken off and is not recorded", flush=True)

    def save(self, iteration: int, save: Callable[[], None]) -> None:
        """Let Megatron save, once the record up to here is on the disk. Every rank must call it."""
        if self.recorder is not None:
            self.recorder.sync()
        self._saves.save(iteration, save)

    def wait_for_save(self, wait: Callable[[], None], last: bool) -> None:
        """Let Megatron look after the asynchronous save that is under way. Every rank must call it."""
        self._saves.wait(wait, last)

    def _write(self, kind: str, iteration: int, **more: Any) -> None:
        if self.recorder is not None:
            self.recorder.write(kind, iteration, *self._count(self.args.consumed_train_samples), **more)
