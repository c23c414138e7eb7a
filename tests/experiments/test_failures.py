"""Why a run ended, from logs as torchrun and its ranks write them."""

from pathlib import Path

import pytest

from fl_lightning.experiments.failures import read, was_stopped, why

LOST = (
    "error: another rank has ended: by an error, which it printed, or killed, as the system does where memory runs out; go on"
)


def entry(position: int, rank: int, status: int) -> str:
    signalled = {-9: "(SIGKILL)", -15: "(SIGTERM)", -11: "(SIGSEGV)"}.get(status, "")
    return (
        f"[{position}]:\n  time      : 2026-11-29_10:52:44\n  host      : node\n  rank      : {rank} (local_rank: {rank})\n"
        f"  exitcode  : {status} (pid: 30856) {signalled}\n  error_file: <N/A>\n  traceback : Signal received by PID 30856\n"
    )


def torchrun(said: str, root: tuple[int, int], *others: tuple[int, int]) -> str:
    """What ranks said, and what torchrun makes of their ends."""
    listed = "Failures:\n" + "".join(entry(i + 1, *other) for i, other in enumerate(others)) if others else ""
    return (
        f"round 1/3: acc 0.989  asr 0.989\n{said}\n"
        "W1129 10:52:44.655000 30800 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 30855 signal\n"
        "Traceback (most recent call last):\n"
        '  File "/venv/bin/torchrun", line 8, in <module>\n'
        "    sys.exit(main())\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "============================================================\n"
        f"fl_lightning FAILED\n{'-' * 60}\n{listed}{'-' * 60}\n"
        f"Root Cause (first observed failure):\n{entry(0, *root)}{'=' * 60}\n"
    )


def told(tmp_path: Path, text: str, status: int = 1) -> str:
    (tmp_path / "log.txt").write_text(text)
    return why(read(tmp_path / "log.txt"), status)


RAISED = "[rank1]: Traceback (most recent call last):\n[rank1]:   File 'x.py', line 1\n[rank1]: ValueError: labels are missing"
CLOSED = "[rank0]: RuntimeError: [tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:41862. This is typically caused by"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (torchrun(LOST, (1, -9), (0, -15)), "rank 1 was killed by signal 9, most likely out of memory"),
        (torchrun(LOST, (0, 2), (1, -9)), "rank 1 was killed by signal 9, most likely out of memory"),
        (torchrun(CLOSED, (0, 1), (1, -11)), "rank 1 was killed by signal 11 (SIGSEGV)"),
        (torchrun(RAISED, (1, 1)), "ValueError: labels are missing"),
        (torchrun(f"{RAISED}\n{CLOSED}", (1, 1), (0, 1)), "ValueError: labels are missing"),
        (torchrun(f"{CLOSED}\n{RAISED}", (0, 1), (1, 1)), "ValueError: labels are missing"),
        (torchrun(f"{RAISED}\n{LOST}", (1, 1), (0, 2)), "ValueError: labels are missing"),
        (torchrun(f"{RAISED}\n[rank0]: KeyError: 'later'", (1, 1), (0, 1)), "ValueError: labels are missing"),
        (torchrun(f"error: tau must be less than 1\n{LOST}", (1, 2), (0, 2)), "error: tau must be less than 1"),
        (
            torchrun("error: another rank has sent nothing for 6 s: it was stopped", (0, 2), (1, -9)),  # torchrun kills it
            "error: another rank has sent nothing for 6 s: it was stopped",
        ),
        (torchrun(LOST, (0, 2)), LOST),
    ],
)
def test_the_ranks_own_reason_is_found(tmp_path, text, reason):
    assert told(tmp_path, text) == reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [(-9, "killed by signal 9, most likely out of memory"), (137, "killed by signal 9, most likely out of memory"),
     (-11, "killed by signal 11 (SIGSEGV)"), (3, "exit status 3")],
)  # fmt: skip
def test_where_nothing_was_said(tmp_path, status, reason):
    assert told(tmp_path, "", status) == reason


@pytest.mark.parametrize(
    ("text", "status", "stopped"),
    [
        ("", 0, True),
        ("", -15, True),
        ("", 143, True),
        ("", 1, False),
        (torchrun("", (1, 143), (0, -15)), 1, True),
        (torchrun("", (1, -9), (0, -15)), 1, False),
        ("torch.distributed.elastic.multiprocessing.api.SignalException: Process 29566 got signal: 15\n", 1, True),
    ],
)
def test_who_was_asked_to_stop_has_not_failed(tmp_path, text, status, stopped):
    (tmp_path / "log.txt").write_text(text)
    assert was_stopped(read(tmp_path / "log.txt"), status) is stopped


def test_a_log_is_read_from_where_the_attempt_began(tmp_path):
    (tmp_path / "log.txt").write_text(torchrun(RAISED, (1, -9)) + "error: of this attempt\n")
    began = len(torchrun(RAISED, (1, -9)))
    log = read(tmp_path / "log.txt", began)
    assert log.failed == []
    assert why(log, 2) == "error: of this attempt"
