"""The learning rate of a parameter added to a model in training makes its steps those of a fresh Adam."""

import pytest
import torch

LATE = 5000  # updates before the parameter is added
BETAS = [(0.9, 0.999), (0.9, 0.95)]


def trajectory(betas: tuple[float, float], late: int, rate_of, updates: int = 60) -> torch.Tensor:
    """A parameter after each update, [updates, size], from zero moments at step ``late``."""
    torch.manual_seed(3)
    parameter = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
    adam = torch.optim.AdamW([parameter], betas=betas, eps=1e-20, weight_decay=0.0)
    zero = torch.zeros_like(parameter)
    adam.state[parameter] = {"step": torch.tensor(float(late)), "exp_avg": zero, "exp_avg_sq": zero.clone()}
    after = []
    for update in range(1, updates + 1):
        parameter.grad = torch.randn(8, dtype=torch.float64) + 0.5
        adam.param_groups[0]["lr"] = 1e-3 * rate_of(late + update)
        adam.step()
        after.append(parameter.detach().clone())
    return torch.stack(after)


def added_and_fresh(betas: tuple[float, float]) -> tuple[torch.Tensor, ...]:
    from phd.megatron.added_parameters import warm_up

    added = trajectory(betas, LATE, lambda update: warm_up(update, LATE, betas, 0))
    early = trajectory(betas, 3, lambda update: warm_up(update, 3, betas, 0))
    plain = trajectory(betas, LATE, lambda update: 1.0)
    return added, early, plain, trajectory(betas, 0, lambda update: 1.0)


@pytest.mark.parametrize("betas", BETAS)
def test_steps_are_those_of_a_fresh_adam(betas, world):
    """However late it is added; without the factor the first is (1 - b1) / sqrt(1 - b2) times as large."""
    ((added, early, plain, fresh),) = world.run(added_and_fresh, betas)
    torch.testing.assert_close(added, fresh, rtol=1e-8, atol=0)
    torch.testing.assert_close(early, fresh, rtol=1e-8, atol=0)
    first = (1 - betas[0]) / (1 - betas[1]) ** 0.5
    torch.testing.assert_close(plain[0] / fresh[0], torch.full_like(plain[0], first), rtol=5e-3, atol=0)


def factors(before: int, iterations: int, updates: list[int]) -> list[float]:
    from phd.megatron.added_parameters import warm_up

    return [warm_up(update, before, (0.9, 0.999), iterations) for update in updates]


def test_the_linear_part(world):
    """From 1/N with the first update to 1 with the N-th; and all of it ends at 1."""
    (plain,) = world.run(factors, 500, 0, [501, 510, 520, 600, 30_500])
    (warmed,) = world.run(factors, 500, 20, [501, 510, 520, 600, 30_500])
    assert [one / other for one, other in zip(warmed, plain, strict=True)] == pytest.approx(
        [0.05, 0.5, 1, 1, 1]
    )
    # sqrt(0.001) / 0.1 and sqrt(1 - 0.999**10) / (1 - 0.9**10) over sqrt(1 - 0.999**501) and of 510
    assert plain == pytest.approx([0.5036, 0.2423, 0.2516, 0.4593, 1], rel=3e-4)
