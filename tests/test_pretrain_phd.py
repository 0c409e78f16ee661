"""The parts of the program that are not Megatron's; tests/megatron and tests/training run trainings."""

from types import SimpleNamespace
from unittest.mock import patch


def loss_of_four(calculate_per_token_loss: bool) -> tuple[float, int, dict[str, list[float]]]:
    """Of losses 1, 2, 4 and 8, where the second and the last do not count."""
    import torch

    import pretrain_phd

    args = SimpleNamespace(
        check_for_nan_in_loss_and_grad=False,
        check_for_spiky_loss=False,
        context_parallel_size=1,
        calculate_per_token_loss=calculate_per_token_loss,
    )
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    losses = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    with patch.object(pretrain_phd, "get_args", lambda: args):
        loss, tokens, report = pretrain_phd.loss_func(mask, 10 * losses, losses)
    return loss.item(), int(tokens), {name: value.tolist() for name, value in report.items()}


def test_masked_tokens_do_not_count(world):
    for per_token in (False, True):
        (answer,) = world.run(loss_of_four, per_token)
        assert answer == (5.0, 2, {"lm loss": [5.0, 2.0], "lm loss original": [50.0, 2.0]})
