"""What a soak says about memory: each stretch of a process in a role counts for itself, warmed up."""

from __future__ import annotations

from bbs_server.dev.soak.memory import ALLOWED_GROWTH, Segment, segment_of


def sampled(*stretches: tuple[str, int, list[float]]) -> list[Segment]:
    """Ten seconds between samples, all stretches one after the other."""
    segments: list[Segment] = []
    time = 0.0
    for name, pid, sizes in stretches:
        for size in sizes:
            segment = segment_of(segments, name, pid)
            segment.times.append(time)
            segment.sizes.append(size)
            time += 10
    return segments


def warming_up(samples: int) -> list[float]:
    """20 MiB in the first ten minutes, then flat."""
    return [76 + min(sample, 60) / 3 for sample in range(samples)]


def test_growth_is_that_after_the_warm_up() -> None:
    (flat,) = sampled(("active", 1, warming_up(200)))
    assert flat.figures()["growth_mib"] == 0
    (leak,) = sampled(("active", 1, [76 + sample / 12 for sample in range(200)]))
    assert leak.figures()["growth_mib"] > ALLOWED_GROWTH
    assert leak.figures()["slope_mib_per_hour"] == 30


def test_nothing_is_said_of_a_short_stretch() -> None:
    (short,) = sampled(("active", 1, warming_up(80)))
    assert short.figures()["growth_mib"] is None


def test_a_role_that_comes_back_warms_up_again() -> None:
    segments = sampled(("active", 1, [76]), ("standby", 1, [76] * 70), ("active", 1, warming_up(120)))
    assert [(one.name, len(one.times)) for one in segments] == [("active", 1), ("standby", 70), ("active", 120)]
    assert segments[-1].figures()["growth_mib"] == 0


def test_processes_have_their_own_segments() -> None:
    segments = sampled(("active", 1, [76]), ("standby", 2, [70]), ("active", 1, [77]), ("active", 3, [75]))
    assert [(one.name, one.pid, one.sizes) for one in segments] == [
        ("active", 1, [76, 77]),
        ("standby", 2, [70]),
        ("active", 3, [75]),
    ]
