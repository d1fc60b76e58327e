"""The published table."""

import dataclasses

import pytest

from gpsafe.planning.mbpo import Schedule, preset
from gpsafe.planning.mbpo.presets import Task

TASKS: tuple[Task, ...] = ("pendulum", "cart-pole", "arm", "drone")


def test_rows_updates_and_memory_of_the_published_budgets() -> None:
    rows = {task: preset(task, "code").virtual_rows for task in TASKS}
    assert rows == {"pendulum": 2_048_000, "cart-pole": 4_096_000, "arm": 4_096_000, "drone": 16_384_000}
    assert preset("drone", "code").virtual_bytes(12, 4) == 16_384_000 * 30 * 4  # 1.97 GB
    assert preset("pendulum").updates == 512_000 and preset("pendulum", "code").updates == 1_024_000
    assert [preset(task).updates for task in TASKS[1:]] == [64_000, 512_000, 512_000]


def test_paper_and_code_differ_where_the_table_says_so() -> None:
    differ = {
        task: {f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)}
        for task in TASKS
        for a, b in [(preset(task), preset(task, "code"))]
    }
    assert differ == {
        "pendulum": {"group"},
        "cart-pole": {"schedule"},
        "arm": {"real_ratio"},
        "drone": {"schedule", "real_ratio", "pretrain"},
    }
    assert not preset("drone").imagines and preset("drone").virtual_rows == 0
    assert preset("drone", "code").imagines and preset("cart-pole").imagines


@pytest.mark.parametrize("task", TASKS)
def test_horizon_and_delay_are_of_the_published_grid_and_variants_keep_the_rest(task: Task) -> None:
    p = preset(task)
    assert p.horizon in p.horizons and p.delay in p.delays
    assert p.shorter(0.2).epochs == p.epochs // 5 and dataclasses.replace(p.shorter(0.2), epochs=p.epochs) == p
    small = preset(task, "code").within(2e8, 12, 4)
    assert 1.9e8 < small.virtual_bytes(12, 4) <= 2e8 and small.within(2e8, 12, 4) is small
    training = p.training()
    assert (training.batch, training.learning_rate, training.bootstrap, training.restart) == (32, 1e-3, False, False)
    assert training.epochs == (100 if p.hidden == (10, 10) else 250)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="task"):
        preset("hopper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant"):
        preset("arm", "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="real_ratio"):
        dataclasses.replace(preset("arm"), real_ratio=2.0)
    with pytest.raises(ValueError, match="epochs"):
        dataclasses.replace(preset("arm"), epochs=0, schedule=Schedule(1, 2, 1, 1))
