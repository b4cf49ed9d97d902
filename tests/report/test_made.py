"""A training's loss curve, reduced to a few points."""

from gradsieve.report.made import loss_curve


def logs(epochs: int, steps: int) -> list[dict[str, float]]:
    """Losses that alternate by 1 from step to step and fall by 1 each epoch."""
    return [
        {
            "step": epoch * steps + step + 1,
            "epoch": epoch + (step + 1) / steps,
            "loss": 10 - epoch + step % 2,
        }
        for epoch in range(epochs)
        for step in range(steps)
    ]


def test_an_epoch_is_a_point() -> None:
    assert loss_curve(logs(3, 6)) == [[6, 10.5], [12, 9.5], [18, 8.5]]


def test_a_long_epoch_is_several() -> None:
    assert loss_curve(logs(1, 100)) == [[25, 10.48], [50, 10.52], [75, 10.48], [100, 10.52]]
    assert len(loss_curve(logs(2, 2000))) == 20


def test_no_steps() -> None:
    assert loss_curve([]) == []
