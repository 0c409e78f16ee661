import re

import pytest

from phd.compare.arguments import DECLARED, differences, refuse_differences
from phd.compare.logs import find_runs
from phd.rules.variant import ARGUMENTS
from phd.run.arguments import flag
from tests.compare.conftest import PHD


def read(*folders):
    return [run for folder in folders for run in find_runs(folder)]


def test_all_that_makes_a_variant_is_declared():
    assert set(ARGUMENTS) <= DECLARED


def test_other_argument_is_refused_and_named(make_run):
    runs = read(make_run("v"), make_run("p", arguments={"lr": 0.002}, **PHD))
    message = f"{runs[0].path} was trained with --lr 0.001 and {runs[1].path} with 0.002; "
    with pytest.raises(ValueError, match=re.escape(message) + ".*add --vary lr$"):
        refuse_differences(runs)
    refuse_differences(runs, ["lr"])


def test_all_differences_are_named(make_run):
    runs = read(make_run("a"), make_run("b"), make_run("c", train_iters=40, arguments={"lr": 0.002}))
    with pytest.raises(ValueError, match="also differ in --train-iters; .* --vary lr --vary train-iters$"):
        refuse_differences(runs)


def test_last_run_is_checked_too(make_run):
    runs = read(make_run("a"), make_run("b"), make_run("c", arguments={"split": "90,10,0"}))
    with pytest.raises(ValueError, match="--split absent and .*c with 90,10,0"):
        refuse_differences(runs)


def branch(trunk: str = "vanilla-seed1", digest: str = "ab12", iteration: int = 10) -> dict:
    """What a run of 20 iterations says that goes on from ``iteration`` of a trunk."""
    return {"trunk": trunk, "checkpoint_sha256": digest, "iteration": iteration, "tokens": 8 * iteration}


def test_branches_of_one_trunk_are_compared(make_run):
    """Wherever it lies, and whatever it is called now."""
    moved = branch("moved/trunk")
    refuse_differences(read(make_run("v", branch=branch()), make_run("p", branch=moved, **PHD)))


def test_branches_of_several_trunks_are_not(make_run):
    """Nor those of several lengths, nor a branch and a run that is none."""
    (run,) = read(make_run("v", branch=branch()))
    (other,) = read(make_run("p", branch=branch(digest="cd34"), **PHD))
    with pytest.raises(ValueError, match="with --trunk-sha256 ab12 and .*p with cd34; .*--vary trunk-sha256"):
        refuse_differences([run, other])
    refuse_differences([run, other], ["trunk_sha256"])
    (alone,) = read(make_run("alone"))
    with pytest.raises(
        ValueError, match="with --trunk vanilla-seed1 at iteration 10 and .*alone with absent"
    ):
        refuse_differences([run, alone])
    (longer,) = read(make_run("longer", branch=branch(), train_iters=30))
    with pytest.raises(ValueError, match="v was trained with --train-iters 20 and .*longer with 30; "):
        refuse_differences([run, longer])


@pytest.mark.parametrize(
    "name",
    [
        *("phd_copies", "phd_window", "phd_chunk", "phd_naive", "phd_prune_last_layer"),
        *("phd_attention_backend", "seed", "attention_pattern", "attention_pattern_stride"),
        *("save", "load", "run_dir", "tensorboard_dir", "data_cache_path", "wandb_project", "wandb_exp_name"),
        *("log_interval", "tensorboard_log_interval", "save_interval", "exit_interval", "timing_log_level"),
        *("non_persistent_save_interval", "rank", "world_size", "local_rank", "master_port"),
        *("distributed_backend", "tensor_model_parallel_size", "pipeline_model_parallel_size"),
        *("context_parallel_size", "data_parallel_size", "sequence_parallel", "micro_batch_size"),
        *("use_distributed_optimizer", "overlap_grad_reduce", "recompute_granularity", "num_workers"),
        *("async_save", "ckpt_format", "auto_detect_ckpt_format", "iteration", "consumed_train_samples"),
    ],
)
def test_what_changes_nothing_may_differ(make_run, name):
    refuse_differences(read(make_run("a", arguments={name: 1}), make_run("b", arguments={name: 2})))


@pytest.mark.parametrize(
    "name",
    [
        *("lr", "min_lr", "train_iters", "global_batch_size", "seq_length", "weight_decay", "adam_beta2"),
        *("num_layers", "hidden_size", "normalization", "bf16", "data_path", "split", "tokenizer_model"),
        *("eval_interval", "eval_iters", "full_validation", "valid_data_path", "attention_dropout"),
        *("rampup_batch_size", "iterations_to_skip", "reset_attention_mask", "logits_load_kd_loss_alpha"),
    ],
)
def test_what_changes_the_numbers_may_not(make_run, name):
    runs = read(make_run("a", arguments={name: 1}), make_run("b", arguments={name: 2}))
    assert differences(*runs) == [name]


def test_checkpoint_to_finetune_matters(make_run):
    runs = [
        make_run(name, arguments={"load": f"/models/{name}", "finetune": True, "ckpt_step": 5})
        for name in "ab"
    ]
    assert differences(*read(*runs)) == ["load"]


def test_argument_that_megatron_derives_follows_its_source(make_run):
    short = {"lr_decay_iters": 20, "end_weight_decay": 0.1, "weight_decay": 0.1}
    long = {"lr_decay_iters": 40, "end_weight_decay": 0.2, "weight_decay": 0.2}
    runs = read(make_run("a", arguments=short), make_run("b", train_iters=40, arguments=long))
    assert differences(*runs) == ["train_iters", "weight_decay"]
    fixed = read(make_run("c", train_iters=40, arguments=short | {"lr_decay_iters": 30}))
    assert differences(runs[0], *fixed) == ["lr_decay_iters", "train_iters"]


@pytest.mark.parametrize("off", [None, False, 0, [], ""])
def test_flag_of_a_newer_version_that_is_off(make_run, off):
    old, new, used = (
        make_run("old"),
        make_run("new", arguments={"late": off}),
        make_run("on", arguments={"late": 1}),
    )
    assert differences(*read(old, new)) == []
    assert differences(*read(old, used)) == ["late"]


@pytest.mark.parametrize("arguments", [None, ()], ids=["both-old", "one-old"])
@pytest.mark.parametrize("name", ["seq_length", "global_batch_size"])
def test_runs_without_arguments_are_compared_by_their_batches(make_run, name, arguments):
    runs = read(make_run("v", arguments=None), make_run("p", arguments=arguments, **PHD, **{name: 16}))
    with pytest.raises(ValueError, match=f"{flag(name)} . and .*p with 16; .*--vary {flag(name)[2:]}"):
        refuse_differences(runs)
    refuse_differences(read(runs[0].path, make_run("q", arguments=None, train_iters=40)))


def test_vary_that_no_run_knows(make_run):
    with pytest.raises(ValueError, match="--vary train-iter: no run has recorded an argument --train-iter$"):
        refuse_differences(read(make_run("a")), ["train_iter"])


def changed(*starts):
    """What phd_run.json says of starts: (iteration, what differed from the last one)."""
    return [{"iteration": iteration, "differs": differs} for iteration, differs in starts]


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("data_path", ["other"], ["data"]),
        ("adam_beta2", 0.5, 0.95),
        ("split", "90,8,2", "50,40,10"),
        ("global_batch_size", 4, 8),
        ("phd_copies", 1, 2),
        ("lr_decay_style", "cosine", "constant"),
        ("weight_decay", 0.1, 0.0),
    ],
)
def test_a_run_that_changed_half_way_is_refused(make_run, name, before, now):
    """Whichever of the runs it is, naming the flag and the iteration."""
    straight = make_run("v", arguments={name: now})
    other = make_run("p", arguments={name: now}, starts=changed((0, {name: before}), (3, {})))
    message = re.escape(
        f"{other} was trained with {flag(name)} {before} up to iteration 3 and with {now} after it; "
    )
    for runs in (read(straight, other), read(other, straight)):
        with pytest.raises(ValueError, match=f"{message}.*add --vary {flag(name)[2:]}$"):
            refuse_differences(runs)
        refuse_differences(runs, [name])


def test_a_seed_that_changed_half_way_is_refused(make_run):
    """Which may differ between runs."""
    runs = read(make_run("v", seed=1), make_run("p", seed=2, starts=changed((0, {"seed": 1}), (7, {}))))
    with pytest.raises(ValueError, match="with --seed 1 up to iteration 7 and with 2 after it"):
        refuse_differences(runs)


def test_all_that_changed_half_way_is_named(make_run):
    starts = changed((0, {"lr": 0.1, "split": "1,1,1"}), (3, {"lr": 0.1}), (9, {}))
    runs = read(
        make_run("v", arguments={"split": "9,1,0"}),
        make_run("p", arguments={"split": "9,1,0"}, starts=starts),
    )
    message = "--split 1,1,1 up to iteration 3 and with 9,1,0 .* also changed --lr; .*--vary split --vary lr$"
    with pytest.raises(ValueError, match=message):
        refuse_differences(runs)


@pytest.mark.parametrize(
    "differs",
    [
        {"tensor_model_parallel_size": 2, "micro_batch_size": 4, "use_distributed_optimizer": True},
        {"log_interval": 7, "save_interval": 3, "world_size": 8, "tensorboard_dir": "elsewhere"},
        {"phd_attention_backend": "reference", "phd_prune_last_layer": False},
        {"exit_interval": 3, "ckpt_step": 4, "load": "elsewhere"},
        {"added_by_newer_code": "absent"},
    ],
)
def test_layout_and_logging_may_change_half_way(make_run, differs):
    now = {"added_by_newer_code": None}
    refuse_differences(
        read(make_run("v"), make_run("p", arguments=now, starts=changed((0, differs), (3, {}))))
    )


def test_runs_that_changed_alike_are_compared(make_run):
    """As both are trained for longer, from the same iteration on."""
    starts = changed((0, {"lr": 0.01}), (10, {}))
    refuse_differences(read(make_run("v", starts=starts), make_run("p", starts=starts)))
    later = make_run("q", starts=changed((0, {"lr": 0.01}), (12, {})))
    with pytest.raises(ValueError, match="--lr 0.01 up to iteration 10"):
        refuse_differences(read(make_run("w", starts=starts), later))


def test_a_start_that_trained_nothing_changed_nothing(make_run):
    """As of a finished run that is started again, with whatever flags."""
    again = make_run("p", arguments={"lr": 7}, starts=changed((0, {"lr": 0.001}), (20, {})))
    refuse_differences(read(make_run("v"), again))
