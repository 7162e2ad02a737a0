"""Which processes measure a size, which rows they give, and their speed-ups."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fcn_bench.agreement import Agreement
from fcn_bench.report import Row
from fcn_bench.rounds import Series, TimingTask, Workload
from fcn_bench.rows import GroundTruth, Outcome, make_rows
from fcn_bench.scenarios import (
    Job,
    MeasuredRow,
    Scenario,
    check_scenarios,
    list_jobs,
    measured_rows,
    torch_modes,
)
from fcn_bench.targets import Candidate
from fcn_bench.timing import Slice, Timing, WarmUp
from fcn_bench.torch_baseline import TORCH_MODES
from fcn_bench.verdict import Verdict
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.machine import CpuAbilities
from fcn_deploy.names import Precision

OPENVINO = Candidate("openvino", Precision.FP32)
BOTH: tuple[Scenario, ...] = ("latency", "throughput")


class NoRunner:
    """Stands where a runner must be named but nothing runs."""

    def warm_up(self, workload: Workload, *, calls: int | None) -> WarmUp:
        raise NotImplementedError

    def measure(self, workload: Workload, *, seconds: float, min_calls: int) -> Slice:
        raise NotImplementedError


def series(frame_ms: float, *, calls_per_second: float = 0.0, rounds: int = 10) -> Series:
    """Rounds of five calls whose network takes four fifths of the frame; a little uneven."""
    slices = [
        Slice(
            tuple(
                Timing(frame_ms * part, 0.8 * frame_ms * part)
                for part in (0.97, 1.0, 1.0 + index / 1000, 1.01, 1.02)
            ),
            calls_per_second,
        )
        for index in range(rounds)
    ]
    return Series(WarmUp(5, True), slices, [0.0] * rounds)


def rows_of(job: Job, frame_ms: float, *, calls_per_second: float = 0.0) -> list[MeasuredRow]:
    parts = [
        (
            TimingTask(job.name, NoRunner(), workload),
            series(frame_ms, calls_per_second=calls_per_second),
        )
        for workload in job.workloads
    ]
    return measured_rows(job, parts, batch=1, height=64, width=96)


def test_pytorch_has_one_process_for_both_scenarios_and_a_candidate_two() -> None:
    jobs = list_jobs([OPENVINO], ["eager", "channels_last"], BOTH, streams=2)

    assert [(job.name, job.scenarios) for job in jobs] == [
        ("torch fp32 eager", BOTH),
        ("torch fp32 channels_last", BOTH),
        ("openvino fp32 1 stream", ("latency",)),
        ("openvino fp32 2 streams", ("throughput",)),
    ]


def test_one_core_has_one_stream_and_one_process() -> None:
    jobs = list_jobs([OPENVINO], [], BOTH, streams=1)

    assert [(job.mode, job.scenarios) for job in jobs] == [("1 stream", BOTH)]


def test_bf16_autocast_is_a_row_of_bf16() -> None:
    jobs = list_jobs([], TORCH_MODES, ["latency"], streams=2)

    assert [job.precision for job in jobs] == ["fp32", "fp32", "bf16", "fp32"]


@pytest.mark.cpu_abilities
def test_pytorch_has_a_row_of_bf16_only_where_the_cpu_has_it(cpu: CpuAbilities) -> None:
    modes, notes = torch_modes(baseline=True, compile=True)

    bf16 = ["bf16-autocast"] if cpu.bf16 else []
    assert list(modes) == ["eager", "channels_last", *bf16, "compile"]
    assert notes == (
        () if cpu.bf16 else ("this CPU has no bf16, so PyTorch has no bf16-autocast row.",)
    )


def test_without_a_baseline_pytorch_has_no_rows_and_compile_is_refused() -> None:
    assert torch_modes(baseline=False, compile=False) == ((), ())
    with pytest.raises(BenchmarkError, match="--compile needs a PyTorch baseline"):
        torch_modes(baseline=False, compile=True)


def test_scenarios_are_checked() -> None:
    assert check_scenarios(["throughput", "latency"]) == BOTH
    assert check_scenarios(["stream", "latency"]) == ("latency", "stream")
    with pytest.raises(BenchmarkError, match="scenario is 'offline'; expected one of latency"):
        check_scenarios(["offline"])
    with pytest.raises(BenchmarkError, match="no scenario was given"):
        check_scenarios([])


def test_one_run_of_frames_gives_both_scopes_of_both_scenarios() -> None:
    (job,) = list_jobs([], ["eager"], BOTH, streams=2)

    rows = rows_of(job, 100.0)

    assert [(row.key.scenario, row.key.scope) for row in rows] == [
        ("latency", "compute"),
        ("latency", "frame"),
        ("throughput", "compute"),
        ("throughput", "frame"),
    ]
    assert rows[0].durations_ms[0][1] == 80.0
    assert rows[1].throughput_fps == pytest.approx(10, rel=0.01)
    assert rows[2].throughput_fps == pytest.approx(12.5, rel=0.01)


def test_saturated_rows_count_what_all_streams_complete() -> None:
    job = list_jobs([OPENVINO], [], ["throughput"], streams=2)[0]

    rows = rows_of(job, 100.0, calls_per_second=19.0)

    assert [row.throughput_fps for row in rows] == [pytest.approx(19.0)] * 2
    assert rows[1].cost_ms[0] == [pytest.approx(1000 / 19)]


def test_speed_up_is_against_eager_and_against_the_best_of_pytorch() -> None:
    eager, last, ours = list_jobs([OPENVINO], ["eager", "channels_last"], ["latency"], streams=2)
    measured = [*rows_of(eager, 90.0), *rows_of(last, 60.0), *rows_of(ours, 30.0)]

    rows = make_rows([(row, Outcome()) for row in measured])

    found = {(row.key.mode, row.key.scope): row for row in rows}
    assert found["eager", "frame"].speedup is None
    ours_row = found["1 stream", "frame"]
    assert ours_row.speedup is not None
    assert ours_row.speedup_best is not None
    assert ours_row.speedup.against == "eager"
    assert ours_row.speedup.ratio.value == pytest.approx(3.0)
    assert ours_row.speedup.ratio.low <= 3.0 <= ours_row.speedup.ratio.high
    assert ours_row.speedup_best.against == "channels_last"
    assert ours_row.speedup_best.ratio.value == pytest.approx(2.0)
    last_row = found["channels_last", "compute"]
    assert last_row.speedup is not None
    assert last_row.speedup.ratio.value == pytest.approx(1.5)
    assert last_row.speedup_best is None
    assert {row.verdict for row in rows} == {Verdict.VALID}


def measured_stream(job: Job, *, written_fps: float, unwritten: int = 0) -> MeasuredRow:
    """Ten turns of five frames at 25 a second, of which the last of each turn may be unwritten."""
    arriving = series(30.0)
    arriving.slices = [replace(p, calls_per_second=written_fps) for p in arriving.slices]
    arriving.slices[0] = replace(arriving.slices[0], unwritten=unwritten)
    parts = [(TimingTask(job.name, NoRunner(), "stream"), arriving)]
    (measured,) = measured_rows(job, parts, batch=1, height=64, width=96, rate_fps=25.0)
    return measured


def stream_row(*, written_fps: float, unwritten: int) -> Row:
    (job,) = list_jobs([OPENVINO], [], ["stream"], streams=2)
    measured = measured_stream(job, written_fps=written_fps, unwritten=unwritten)
    return make_rows([(measured, Outcome())])[0]


def test_a_stream_that_keeps_up_is_valid() -> None:
    row = stream_row(written_fps=24.9, unwritten=0)

    assert row.verdict is Verdict.VALID
    assert (row.key.scenario, row.key.scope) == ("stream", "stream")
    assert row.throughput_fps == pytest.approx(24.9)
    assert any("of 50 frames at 25 a second 0 were late" in note for note in row.notes)


@pytest.mark.parametrize(("written_fps", "unwritten"), [(12.0, 0), (24.9, 3)])
def test_a_stream_that_cannot_keep_up_is_suspect(written_fps: float, unwritten: int) -> None:
    row = stream_row(written_fps=written_fps, unwritten=unwritten)

    assert row.verdict is Verdict.SUSPECT
    assert row.notes[0].startswith("cannot keep up with 25 frames/s")
    assert any("frames were not written" in note for note in row.notes) == (unwritten > 0)


@pytest.mark.parametrize(("eager_fps", "ours_fps"), [(14.0, 25.0), (25.0, 14.0), (25.0, 25.0)])
def test_a_queue_that_grows_is_no_measure_of_speed(eager_fps: float, ours_fps: float) -> None:
    jobs = list_jobs([OPENVINO], ["eager"], ["stream"], streams=2)
    rates = (eager_fps, ours_fps)
    measured = [measured_stream(job, written_fps=fps) for job, fps in zip(jobs, rates, strict=True)]

    *_, ours = make_rows([(row, Outcome()) for row in measured])

    keeps_up = min(rates) > 20
    assert (ours.speedup is not None) == keeps_up
    assert (ours.speedup_best is not None) == keeps_up
    said = any(note.startswith("no speed-up: PyTorch eager cannot") for note in ours.notes)
    assert said == (eager_fps < 20)


def test_a_stream_shares_the_process_of_latency() -> None:
    jobs = list_jobs([OPENVINO], ["eager"], ("latency", "throughput", "stream"), streams=2)

    assert [(job.mode, job.workloads) for job in jobs] == [
        ("eager", ("frame", "stream")),
        ("1 stream", ("frame", "stream")),
        ("2 streams", ("compute", "frame")),
    ]


def test_equal_rows_cannot_be_told_apart() -> None:
    eager, ours = list_jobs([OPENVINO], ["eager"], ["latency"], streams=2)
    measured = [*rows_of(eager, 50.0), *rows_of(ours, 50.0)]

    rows = make_rows([(row, Outcome()) for row in measured])

    assert any("cannot tell apart" in note for note in rows[-1].notes)


def test_without_a_baseline_there_is_no_speed_up() -> None:
    job = list_jobs([OPENVINO], [], ["latency"], streams=2)[0]

    rows = make_rows([(row, Outcome()) for row in rows_of(job, 50.0)])

    assert [(row.speedup, row.speedup_best) for row in rows] == [(None, None)] * 2


def test_drop_is_pytorchs_mean_iou_less_the_rows_in_points() -> None:
    job = list_jobs([OPENVINO], [], ["latency"], streams=2)[0]
    outcome = Outcome(
        agreement=Agreement(0.99, 0.01, 0.98),
        truth=GroundTruth(0.80),
        eager_truth=GroundTruth(0.812),
    )

    row = make_rows([(row, outcome) for row in rows_of(job, 50.0)])[0]

    assert row.fidelity.miou == 0.80
    assert row.fidelity.miou_drop == pytest.approx(1.2)
    assert row.fidelity.miou_vs_baseline == 0.98


def test_fp32_that_disagrees_is_suspect_and_bf16_is_not_judged_by_that() -> None:
    half = Candidate("openvino", Precision.BF16)
    jobs = list_jobs([OPENVINO, half], [], ["latency"], streams=2)
    outcome = Outcome(agreement=Agreement(0.95, 0.0, 0.9, 0.1, weak_margin_share=0.5))

    rows = make_rows([(row, outcome) for job in jobs for row in rows_of(job, 50.0)])

    assert [row.verdict for row in rows] == [Verdict.SUSPECT] * 2 + [Verdict.VALID] * 2
    assert "only 95.00% of the pixels" in rows[0].notes[0]
    assert "nearly undecided at 50% of the pixels" in rows[2].notes[0]


def test_faults_of_the_output_make_every_row_suspect() -> None:
    job = list_jobs([OPENVINO], [], ["latency"], streams=2)[0]
    outcome = Outcome(agreement=Agreement(faults=("constant output",)))

    rows = make_rows([(row, outcome) for row in rows_of(job, 50.0)])

    assert [row.notes[0] for row in rows] == ["constant output"] * 2
    assert {row.verdict for row in rows} == {Verdict.SUSPECT}


def test_duration_of_zero_is_an_error() -> None:
    job = list_jobs([OPENVINO], [], ["latency"], streams=2)[0]

    with pytest.raises(BenchmarkError, match="a duration that is zero, negative or no number"):
        rows_of(job, 0.0)
