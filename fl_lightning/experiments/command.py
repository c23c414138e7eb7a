"""`fl-lightning sweep`, `fl-lightning report` and `fl-lightning pack`."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.arguments import Parser
from fl_lightning.experiments.budget import SPENT, Budget, read_span
from fl_lightning.experiments.labels import having, label
from fl_lightning.experiments.planned import POOL, SWEEPS, Run, missing_prefixes, prefixes
from fl_lightning.experiments.priority import in_order
from fl_lightning.experiments.run_folder import State
from fl_lightning.experiments.scheduler import environments, run_all, write_config
from fl_lightning.experiments.slurm import SlurmOptions, submit
from fl_lightning.experiments.sweep import check_name, read_sweep
from fl_lightning.experiments.template import STDOUT, write_template
from fl_lightning.experiments.warm_client import Servers
from fl_lightning.options.class_settings import class_setting
from fl_lightning.options.this_machine import check_folder, most_processes

ON_SCREEN = ("Acc", "ASR", "n", "paper Acc / ASR")
"""Columns of a table that fit a terminal beside the axes."""


def sweep(args: Sequence[str]) -> None:
    """`fl-lightning sweep FILE`: run what is not finished of a sweep."""
    options, overrides = parse_sweep_command(args)
    budget = Budget(options.budget)  # reading the sweep is part of it
    if options.template is not None:
        write_template(options.template, args)
        return
    check_folder(options.runs, "--runs")
    for name, number in (("--jobs", options.jobs), ("--ranks", options.ranks)):
        if number is not None and not 1 <= number <= most_processes():
            raise ConfigurationError(f"{name} must be at least 1 and at most {most_processes()} on this machine, got {number}")
    if options.slurm and options.budget is not None:
        raise ConfigurationError(f"--budget {options.budget}s is for runs on this machine; with --slurm give a run's --time")
    console = Console()
    with forked_from(options, console) as servers:
        carry_out(options, overrides, budget, servers, console)


@contextmanager
def forked_from(options: argparse.Namespace, console: Console) -> Iterator[Servers | None]:
    """The processes that runs are forked from, which import while the sweep is read; None where there are to be none."""
    if options.cold or options.ranks is not None or options.slurm or options.dry_run or options.status:
        yield None
        return
    with Servers(lambda line: console.print(line, soft_wrap=True, markup=False, highlight=False)) as servers:
        servers.begin(environments(options.jobs))
        yield servers


def carry_out(
    options: argparse.Namespace, overrides: Sequence[str], budget: Budget, servers: Servers | None, console: Console
) -> None:
    """Read a sweep and list, submit or run its runs, as the options say."""
    planned = read_sweep(options.file)
    if options.name:
        check_name(options.name)
        planned = replace(planned, name=options.name)
    everything = planned.runs(options.runs / POOL, dict(options.settings), overrides)
    if options.have:
        from fl_lightning.experiments.pools import with_results_of  # with pandas, as below

        everything, notes = with_results_of(everything, options.have)
        for said in notes:
            console.print(f"note: {said}", soft_wrap=True, markup=False, highlight=False)
    runs = in_order(chosen(everything, options.only), planned.priority)
    if options.dry_run or options.status:
        show(runs, console)
        return
    from fl_lightning.experiments.results import write_index  # with pandas, which takes longer than a list of runs

    folder = options.runs / SWEEPS / planned.name
    given = [f"{name}={value}" for name, value in options.settings if not name.endswith("path")]
    write_index(folder, planned, everything, [*given, *overrides])
    say_rules(runs, console)
    if options.slurm:
        send(runs, folder, options, console)
        return
    try:
        states = run_all(
            runs,
            jobs=options.jobs,
            ranks=options.ranks,
            console=console,
            priority=planned.priority,
            budget=budget,
            servers=servers,
        )
    except KeyboardInterrupt:
        console.print(
            f"Stopped: {tally(Counter(run.folder.state for run in runs))}. The same command goes on.", highlight=False
        )
        sys.exit(130)
    out_of_time = budget.spent and states[State.FINISHED] < len(runs)
    said = f"The time is spent: {tally(states)}. The same command goes on" if out_of_time else tally(states)
    also = "".join(f" --runs {place}" for place in options.have)
    console.print(f"{said}. Tables and figures: fl-lightning report {folder}{also}", soft_wrap=True, highlight=False)
    if status := exit_status(states, out_of_time):
        sys.exit(status)


def report(args: Sequence[str]) -> None:
    """`fl-lightning report SWEEP`: tables, curves and a page of a sweep as it stands."""
    # With pandas and matplotlib, which a sweep has no need of.
    from fl_lightning.experiments.final import Final
    from fl_lightning.experiments.pools import read_pools
    from fl_lightning.experiments.report import MOST_CELLS, write_report
    from fl_lightning.experiments.tables import table

    parser = Parser(
        prog="fl-lightning report",
        description="Write tables (Markdown, LaTeX, CSV), figures (PDF, SVG) and report.html of a sweep, as far as it is.",
    )
    parser.add_argument("sweep", type=Path, help="the sweep's file, or its folder (runs/sweeps/NAME)")
    parser.add_argument(
        "--runs",
        type=Path,
        action="append",
        default=[],
        help="folder of all runs (default: runs), or a file of `pack`; several times for those of several machines: of a run "
        "that lies in more than one, the finished or furthest counts",
    )
    parser.add_argument("--output", type=Path, help="where to write (default: the sweep's folder)")
    parser.add_argument(
        "--measure",
        choices=[str(final) for final in Final],
        default=str(Final.LAST),
        help="Acc and ASR in table.tex, bars and heat maps: of the last round, or their means over a run's last evaluations, "
        "ten at most (default: last)",
    )
    parser.add_argument(
        "--only",
        metavar="AXIS=LABEL",
        type=label,
        action="append",
        default=[],
        help="show the cells with these labels alone, for example --only rule=FedAvg --only rule=Krum; needs an --output of "
        "its own. They are compared with the same cells as in the whole sweep",
    )
    options = parser.parse_args(args)
    if options.only and options.output is None:
        parser.error("--only needs --output, as the sweep's folder has the report of the whole sweep")
    results, folder = read_pools(options.sweep, options.runs)
    results = results.only(options.only)
    output = options.output or folder
    written = write_report(results, output, Final(options.measure))
    shown = table(results)
    shown = shown[[name for name in shown if name in (*results.axes, *ON_SCREEN)]]
    printed = Table(*shown.columns, title=Text(results.title))
    for row in shown.to_numpy().tolist():
        printed.add_row(*map(Text, row))
    Console().print(printed)
    for note in results.notes:
        print(f"note: {note}")
    pdfs = [path for path in written if path.suffix == ".pdf"]
    if len(results.cells) > MOST_CELLS:
        print(f"Curves and bars are drawn of {MOST_CELLS} cells at most; these are {len(results.cells)}: choose with --only")
    print(f"Report: {output / 'report.html'}")
    print(f"For a paper: {output / 'table.tex'}, {output / 'figures.tex'} and {len(pdfs)} figures in {output / 'figures'}")


def pack(args: Sequence[str]) -> None:
    """`fl-lightning pack RUNS ... FILE`: finished runs as one file of data."""
    from fl_lightning.experiments.packs import ENDING, write_pack  # with pandas

    parser = Parser(
        prog="fl-lightning pack",
        description="Write what is finished of runs as one file, without weights and without paths of this machine: "
        "`report --runs FILE` makes tables of it, `sweep --have FILE` runs what it lacks.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUNS",
        help="folder of all runs, or a file of `pack`; several for those of several machines",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=f"to be written, or written anew: *{ENDING}")
    parser.add_argument(
        "--sweep",
        metavar="NAME",
        action="append",
        default=[],
        help="a sweep whose runs are meant, by the name of its folder; several times for several (default: all runs)",
    )
    options = parser.parse_args(args)
    runs, left_out, notes = write_pack(options.file, options.runs, options.sweep)
    for said in notes:
        print(f"note: {said}")
    unfinished = f"; {left_out} that are not finished are left out" if left_out else ""
    print(f"{options.file}: {runs} runs, {options.file.stat().st_size / 1000:,.0f} kB{unfinished}")


def parse_sweep_command(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of `sweep`, and what stands after `--`, for every `fit`."""
    own, overrides = list(args), []
    if "--" in own:
        at = own.index("--")
        own, overrides = own[:at], own[at + 1 :]
    for taken, instead in (("--seed_everything", "the axis `seed`"), ("--trainer.default_root_dir", "--runs")):
        if any(word.split("=")[0] == taken for word in overrides):
            raise ConfigurationError(f"{taken} is set for every run of a sweep; use {instead}")
    parser = Parser(
        prog="fl-lightning sweep",
        description="Run what is not finished of a sweep: a finished run is never run again, one that was interrupted or "
        "stopped goes on from its last checkpoint, a failed one is tried again.",
        epilog="Whatever follows `--` is given to every fit, for example: -- --trainer.max_epochs 5",
    )
    add = parser.add_argument
    add("file", type=Path, nargs="?", help="the sweep's file")
    add(
        "--template",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="write a sweep's file to begin with, in which every key is explained, or print it; runs nothing",
    )
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    add(
        "--have",
        type=Path,
        metavar="PLACE",
        action="append",
        default=[],
        help="a file of `pack`, or a folder of all runs, as of another machine: what is finished there is not run again, and "
        "nothing is written there",
    )
    add("--name", help="name of the sweep's folder (default: that of the file)")
    add(
        "--with",
        dest="settings",
        metavar="CLASS.SETTING=VALUE",
        type=class_setting,
        action="append",
        default=[],
        help="a setting of a class wherever a run names it, for example --with CIFAR10.path=data/cifar10",
    )
    add(
        "--only",
        metavar="AXIS=LABEL",
        type=label,
        action="append",
        default=[],
        help="run these alone, for example --only rule=FedAvg --only rule=Krum --only seed=0; the report shows what is missing",
    )
    add("--dry-run", action="store_true", help="list the runs and their states, and run nothing")
    add("--status", action="store_true", help="the same; states are read from the runs' folders, wherever they run")
    add("--jobs", type=int, default=1, help="runs at a time on this machine; GPUs are shared out among them (default: 1)")
    add(
        "--budget",
        type=read_span,
        metavar="TIME",
        help="time for all of it, for example 25m or 1h30m: then what is running ends after its round, the exit status is "
        f"{SPENT} unless all is finished (1 where a run failed), and the same command goes on (default: no limit)",
    )
    add("--ranks", type=int, help="processes per run, through torchrun (default: one process, with all devices that it sees)")
    add("--cold", action="store_true", help="start every run as a new process; they are forked otherwise, which saves imports")
    slurm = parser.add_argument_group("SLURM")
    add = slurm.add_argument
    add("--slurm", action="store_true", help="submit job arrays in place of running here")
    add("--partition")
    add("--account")
    add("--time", help="time limit of a task, for example 2:00:00; what is not done by then requeues itself")
    add("--nodes", type=int, default=1, help="nodes per run (default: 1)")
    add("--gpus-per-node", type=int)
    add("--cpus-per-task", type=int)
    add("--processes-per-node", type=int, help="processes per node (default: one per GPU, else one)")
    add("--at-once", type=int, help="tasks of an array that may run at the same time")
    add("--array-limit", type=int, default=1000, help="tasks in one array, at most (default: 1000)")
    add("--sbatch", metavar="FLAG", action="append", default=[], help="a further option of sbatch, such as --sbatch=--qos=long")
    options = parser.parse_args(own)
    if options.file is None and options.template is None:
        parser.error("the following arguments are required: file")
    return options, overrides


def chosen(runs: Sequence[Run], only: Sequence[tuple[str, str]]) -> list[Run]:
    """The runs that have one of the labels given for each axis that labels are given for."""
    return [runs[i] for i in having([{**run.cell.labels, "seed": str(run.seed)} for run in runs], only)]


def say_rules(runs: Sequence[Run], console: Console) -> None:
    """Say where runs begin with another rule than theirs, in a line."""
    rules = {run.fork.rule for run in runs if run.fork is not None and run.fork.rule is not None}
    if rules:
        console.print(
            f"The prefix is trained with {', '.join(sorted(rules))}; a run with another rule begins it after the prefix, "
            "without a memory, and so differs from one that is run from its start.",
            soft_wrap=True,
            highlight=False,
        )


def send(runs: Sequence[Run], folder: Path, options: argparse.Namespace, console: Console) -> None:
    """Submit what is neither finished nor at work to SLURM: prefixes first, and after them the runs that begin with them."""
    over = (State.FINISHED, State.RUNNING)
    shared = missing_prefixes(runs)
    at_work = {prefix.id for prefix in shared if prefix.folder.state is State.RUNNING}
    missing = [run for run in runs if run.folder.state not in over]
    held = [run for run in missing if run.fork is not None and run.fork.run.id in at_work and not run.folder.begun]
    missing = [run for run in missing if run not in held]
    shared = [prefix for prefix in shared if prefix.id not in at_work]
    for run in (*shared, *missing):
        write_config(run)
    slurm = SlurmOptions(
        partition=options.partition,
        account=options.account,
        time=options.time,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        cpus_per_task=options.cpus_per_task,
        processes_per_node=options.processes_per_node,
        at_once=options.at_once,
        array_limit=options.array_limit,
        extra=options.sbatch,
    )
    before = submit([prefix.folder.path for prefix in shared], folder / "slurm", slurm)
    jobs = submit([run.folder.path for run in missing], folder / "slurm", slurm, before)
    if before:
        console.print(f"{len(shared)} prefixes submitted as job arrays: {', '.join(before)}", highlight=False)
    console.print(f"{len(missing)} of {len(runs)} runs submitted as job arrays: {', '.join(jobs) or 'none'}", highlight=False)
    if held:
        console.print(
            f"{len(held)} more begin with prefixes that are at work now; give the same command when those have ended",
            highlight=False,
        )


def show(runs: Sequence[Run], console: Console) -> None:
    """List runs with their states, and apart from them the prefixes that they begin with."""
    if shared := prefixes(runs):
        number = Counter(run.fork.run.id for run in runs if run.fork is not None)
        states = [prefix.folder.state for prefix in shared]
        listed = Table("prefix", "seed", "runs", "state", "round", "")
        for prefix, state in zip(shared, states, strict=True):
            listed.add_row(*map(Text, (prefix.id, str(prefix.seed), str(number[prefix.id]), *standing(prefix, state))))
        console.print(listed)
        console.print(f"prefixes: {tally(Counter(states))}", highlight=False)
    states = [run.folder.state for run in runs]
    listed = Table("id", *runs[0].cell.labels, "seed", "state", "round", "")
    for run, state in zip(runs, states, strict=True):
        listed.add_row(*map(Text, (run.id, *run.cell.labels.values(), str(run.seed), *standing(run, state))))
    console.print(listed)
    console.print(tally(Counter(states)), highlight=False)


def standing(run: Run, state: State) -> tuple[str, str, str]:
    """A run's state, the round that it has reached, and why it failed or stopped."""
    evaluations = run.folder.metrics
    reached = f"{evaluations[-1]['round'] if evaluations else 0}/{run.config['trainer'].get('max_epochs')}"
    return str(state), reached, run.folder.message if state in (State.FAILED, State.STOPPED) else ""


def exit_status(states: Counter[State], out_of_time: bool) -> int:
    """Of a sweep: 0 if all is finished, `SPENT` if nothing but time was missing, else 1.

    >>> exit_status(Counter([State.FINISHED]), False), exit_status(Counter([State.FINISHED, State.INTERRUPTED]), True)
    (0, 75)
    >>> exit_status(Counter([State.PENDING, State.FAILED]), True), exit_status(Counter([State.INTERRUPTED]), False)
    (1, 1)
    """
    if states.total() == states[State.FINISHED]:
        return 0
    return SPENT if out_of_time and not states[State.FAILED] + states[State.STOPPED] else 1


def tally(states: Counter[State]) -> str:
    """
    >>> tally(Counter([State.FINISHED, State.FAILED, State.FINISHED]))
    '2 finished, 1 failed'
    """
    order = (State.FINISHED, State.RUNNING, State.STOPPED, State.INTERRUPTED, State.FAILED, State.PENDING)
    return ", ".join(f"{states[state]} {state}" for state in order if states[state])
