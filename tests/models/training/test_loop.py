"""The training loop, on a network of a few weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mien.errors import DataError
from mien.models.training.loop import Evaluation, Run, class_weights, decay_groups, fit, warm_cosine

STEPS, EVERY = 12, 4


def make_run(decay: float = 0.5, rate: float = 0.1) -> Run[nn.Sequential]:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    network[0].requires_grad_(False)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(decay_groups(trained, 0.01, rate), lr=rate)
    return Run(network, optimizer, warm_cosine(STEPS, 3), decay=decay, clip=1.0)


def train(run: Run[nn.Sequential], state: Path | None = None, plan: str = "plan", stop_at: int = -1) -> list[int]:
    """Returns the number of all steps, as reported after each step."""
    progress: list[int] = []

    def losses(_: int) -> tuple[str, Tensor]:
        x = torch.randn(8, 3)
        return "squares", (run.network(x) - x.sum(1, keepdim=True)).square().mean()

    @torch.no_grad()
    def validate() -> tuple[float, dict[str, float]]:
        x = torch.tensor([[1.0], [-1.0]]).expand(2, 3)
        error = float((run.averaged(x) - x.sum(1, keepdim=True)).abs().mean())
        return error, {"error": error}

    def report(step: int, steps: int, _: Evaluation | None) -> None:
        progress.append(steps)
        if step == stop_at:
            raise KeyboardInterrupt

    fit(run, losses, STEPS, 7, validate=validate, every=EVERY, patience=2, state=state, plan=plan, report=report)
    return progress


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [warm_cosine(100, 10, floor=0.1)(step) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_class_weights_change_no_learning_rate(exponent: float) -> None:
    counts = torch.tensor([90.0, 9.0, 1.0])
    weights = class_weights(counts, exponent)
    assert float((weights * counts).sum()) == pytest.approx(100.0)
    assert float(weights[2] / weights[0]) == pytest.approx(90.0**exponent)
    assert torch.isfinite(class_weights(torch.zeros(3), exponent)).all()


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted, first, second = make_run(), make_run(), make_run()
    train(uninterrupted)
    with pytest.raises(KeyboardInterrupt):
        train(first, tmp_path / "state", stop_at=10)
    train(second, tmp_path / "state")
    assert not (tmp_path / "state").exists()
    assert second.history == uninterrupted.history
    assert len(uninterrupted.history) == STEPS // EVERY
    assert equal(uninterrupted.network, second.network)
    assert equal(uninterrupted.averaged, second.averaged)
    assert equal(uninterrupted.best_network(), second.best_network())


def test_the_average_follows_weights_and_buffers_and_leaves_frozen_ones() -> None:
    run = make_run(decay=0.99)
    start = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    train(run)
    averaged, now = run.averaged.state_dict(), run.network.state_dict()
    assert torch.equal(averaged["0.weight"], start["0.weight"])
    assert not torch.equal(averaged["2.weight"], now["2.weight"])
    # With the ramp the average has left the random start behind.
    apart = [(averaged["2.weight"] - other["2.weight"]).norm() for other in (now, start)]
    assert apart[0] < apart[1]
    assert int(averaged["1.num_batches_tracked"]) == STEPS
    assert not torch.equal(averaged["1.running_var"], start["1.running_var"])


def test_a_run_that_does_not_improve_ends_early() -> None:
    run = make_run(rate=0.0)
    for layer in run.network.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.momentum = 0.0  # and so nothing changes
    assert train(run) == [STEPS] * STEPS
    assert run.stale == 2
    assert run.best == run.history[0]


@pytest.mark.parametrize(("damage", "complaint"), [(False, "other settings"), (True, "remove it to start again")])
def test_unusable_state_is_refused(damage: bool, complaint: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(make_run(), state, stop_at=5)
    if damage:
        state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(DataError, match=complaint):
        train(make_run(), state, plan="another plan")
