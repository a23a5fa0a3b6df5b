"""Heatmaps or direct regression? Trains both, varies what may matter, and writes the report.

    python launch/heatmap_vs_regression.py --out=runs/study
    python launch/heatmap_vs_regression.py --out=runs/quick --quick

Both networks on the same stick figures, with several seeds, and once on figures whose hands nothing
tells apart; then heatmaps of other sizes, widths and without skips, and every decoder on the maps
of every width. Finished runs are skipped and interrupted ones go on, so the same command continues.
--quick goes the whole way in minutes, on small pictures and a few steps: its report shows what
there will be, not which method is better.

OUT/NAME/                     each run's workdir, as main.py leaves it
OUT/ablations/NAME/sweep.csv  the scores of one comparison
OUT/results/                  report.html, report.md, visualizations/, training_log.json and the
                              best weights of both methods, for PyTorch too where it is installed
OUT/results/free/             the report on figures whose hands nothing tells apart
"""

import dataclasses
import importlib.util
import json
import pathlib
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from heatmap import command_line, workdir
from heatmap.errors import UserError, guard
from launch import hyper, local
from launch import jobs as jobs_lib
from launch.jobs import SWEEP, Job, Line, statuses, write_lines, write_table

SPLIT = "test"
CONFIGS = {"heatmap": "configs/sigma2.py", "regression": "configs/regression.py"}
ARMS = ("own_side", "free")  # the second: no picture shows which hand is the left one
SIGMAS, SIGMA = (1.0, 2.0, 3.0, 4.0), 2.0
STRIDES, STRIDE = (4, 2, 1), 2  # size of the picture over that of the maps
# Settings of the decoder by the name in the table. The literal soft-argmax cannot read maps of
# squared error: the table shows that it cannot.
DECODERS: dict[str, dict[str, Any]] = {
    "argmax": {"name": "argmax"},
    "soft_argmax": {"name": "soft_argmax", "beta": 1.0, "force": True},
    "soft_argmax, beta 20": {"name": "soft_argmax", "beta": 20.0},
    "local_soft_argmax": {"name": "local_soft_argmax"},
    "dark": {"name": "dark"},
}
# Sheets keep the maps of several stages of training.
FULL_SIDE, FULL = 128, {"eval.sheet_every_evals": 3}
QUICK_SIDE, QUICK = (
    64,
    {
        "data.verify": False,
        "train.steps": 36,
        "train.eval_every_steps": 12,
        "eval.batch_size": 100,
        "eval.sheet_every_evals": 1,
        "log.tensorboard": False,
    },
)


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs, and which of them each table compares.

    Attributes:
      out: the study's folder.
      tables: by name of the comparison, its runs, with the columns that tell them apart there. A
        run may stand in several.
      pairs: by variant of the arms, the runs of both methods with the first seed, by method.
    """

    out: pathlib.Path
    tables: Mapping[str, Sequence[Job]]
    pairs: Mapping[str, Mapping[str, Job]]

    @property
    def jobs(self) -> list[Job]:
        """Every run once, the two methods first."""
        return list({job.name: job for jobs in self.tables.values() for job in jobs}.values())

    def table(self, name: str) -> pathlib.Path:
        """Returns where the table of a comparison is."""
        return self.out / "ablations" / name / SWEEP


def plan(out: pathlib.Path, seeds: int, quick: bool, overrides: hyper.Overrides) -> Study:
    """Lists the runs of the study.

    Args:
      out: its folder.
      seeds: how often each method is trained.
      quick: whether to go the whole way on small pictures and a few steps.
      overrides: config fields that all runs share.

    Raises:
      UserError: if these have a field that the study varies or computes with.
    """
    side, settings = (QUICK_SIDE, QUICK) if quick else (FULL_SIDE, FULL)

    def square(size: int) -> str:
        return f"({size},{size})"

    maps = [square(side // stride) for stride in STRIDES]
    own = {
        "targets.heatmap_size": square(side // STRIDE),
        "targets.sigma": SIGMA,
        "model.skip": True,
        "data.arms": ARMS[0],
        "seed": 0,
    }
    jobs_lib.refuse_fixed(overrides, {"data.image_size", *own})
    shared = {"data.image_size": square(side), **settings, **overrides}

    def job(name: str, method: str, columns: dict[str, Any], changes: hyper.Overrides) -> Job:
        return Job(name, CONFIGS[method], {**shared, **own, **changes}, columns, out)

    def vary(field: str, values: Mapping[str, Any]) -> list[Job]:
        """Takes the method's own run where a value is the method's own."""
        return [
            job(
                "heatmap" if value == own[field] else name,
                "heatmap",
                {field: value},
                {field: value},
            )
            for name, value in values.items()
        ]

    methods = [
        job(
            f"{method}-seed{seed}" if seed else method,
            method,
            {"model": method, "seed": seed},
            {"seed": seed},
        )
        for seed in range(seeds)
        for method in CONFIGS
    ]
    pairs = {
        arms: {
            method: job(
                f"{method}-{arms}" if arms != own["data.arms"] else method,
                method,
                {"data.arms": arms, "model": method},
                {"data.arms": arms},
            )
            for method in CONFIGS
        }
        for arms in ARMS
    }
    return Study(
        out,
        {
            "methods": methods,
            "arms": [job for pair in pairs.values() for job in pair.values()],
            "resolution": vary(
                "targets.heatmap_size",
                {f"maps{side // stride}": size for stride, size in zip(STRIDES, maps, strict=True)},
            ),
            "sigma": vary("targets.sigma", {f"sigma{sigma:g}": sigma for sigma in SIGMAS}),
            "skip": vary("model.skip", {"skip": True, "no_skip": False}),
        },
        pairs,
    )


def write_tables(study: Study) -> None:
    """Writes the table of every comparison."""
    for name, jobs in study.tables.items():
        write_table(jobs, statuses(jobs), study.table(name))


def compare_decoders(study: Study) -> None:
    """Writes the table of every decoder on the maps of every width, each from one checkpoint."""
    lines = [line for job in study.tables["sigma"] if job.is_finished() for line in _read_anew(job)]
    if lines:
        write_lines(lines, study.table("decoder"))


def _read_anew(job: Job) -> list[Line]:
    """Scores a run's maps under every decoder; the maps are made once."""
    import jax

    import input_pipeline
    from heatmap import decoding, evaluate
    from heatmap import run as run_lib

    run = run_lib.open_run(job.workdir)
    records, split = input_pipeline.load(run.config.data)
    held_out = records.take(split.rows[SPLIT])
    configs = {
        label: dataclasses.replace(
            run.config, decoder=dataclasses.replace(run.config.decoder, **settings)
        )
        for label, settings in DECODERS.items()
    }

    def step(weights, batch):
        maps = run.network.predict(weights, run_lib.normalise_pixels(batch["image"], run.config))
        return {label: decoding.decode(config, maps) for label, config in configs.items()}, 0.0, 0.0

    with jax.set_mesh(run.mesh):
        found, unknown_loss = evaluate.collect(run, jax.jit(step), run.weights, held_out)
    return [
        Line(
            f"{job.name}-{label}",
            "finished",
            {**job.columns, "decoder": label},
            evaluate.score(
                run,
                SPLIT,
                evaluate.in_original_pixels(run.config, held_out, found[label]),
                unknown_loss,
            ),
        )
        for label in DECODERS
    ]


def write_results(study: Study, command: str) -> None:
    """Collects what the specification asks for in OUT/results.

    Args:
      study: whose runs of both methods are finished.
      command: the command line, for the reports.
    """
    results = study.out / "results"
    logs: dict[str, Any] = {}
    for method, job in study.pairs[ARMS[0]].items():
        (logs[method],) = json.loads((job.workdir / workdir.TRAINING_LOG).read_text()).values()
        _copy_best(job.workdir, results / f"{method}_model")
        if importlib.util.find_spec("torch"):
            from benchmarks import to_pth

            to_pth.save(job.workdir, results / f"{method}_model.pth")
    workdir.write_json(results / workdir.TRAINING_LOG, logs)
    tables = [study.table(name) for name in (*study.tables, "decoder")]
    for arms, pair in study.pairs.items():
        if all(job.is_finished() for job in pair.values()):
            own = arms == ARMS[0]
            folder, compared = (results, tables) if own else (results / arms, [])
            _write_report(pair, folder, compared, command)


def _write_report(
    pair: Mapping[str, Job], folder: pathlib.Path, tables: Sequence[pathlib.Path], command: str
) -> None:
    """Compares the runs of both methods, and says first what came of it."""
    from heatmap.report import __main__ as report_lib
    from heatmap.report import markdown, page

    comparison, gallery = report_lib.report(
        [_from_here(job.workdir) for job in pair.values()],
        SPLIT,
        [path for path in tables if path.is_file()],
    )
    comparison = dataclasses.replace(comparison, command=command)
    markdown.write(folder / "report.md", comparison, gallery, "visualizations")
    page.write(folder / "report.html", comparison, gallery)
    print(f"wrote {folder / 'report.md'} and {folder / 'report.html'}")
    for sentence in comparison.text["summary"]:
        print(sentence)


def _from_here(folder: pathlib.Path) -> pathlib.Path:
    """Names a folder as one types it, so that the report's commands fit any clone."""
    here = pathlib.Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _copy_best(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the best checkpoint of a workdir, an Orbax folder, over an earlier copy."""
    (best,) = (folder / "checkpoints" / "best").iterdir()
    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(best, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the study; exit code 1 if a run is not finished."""
    parser = command_line.parser("python launch/heatmap_vs_regression.py", __doc__)
    parser.epilog = jobs_lib.EPILOG
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the study's folder")
    parser.add_argument("--quick", action="store_true", help="the whole way, in minutes")
    parser.add_argument(
        "--seeds", type=jobs_lib.positive, help="of each method; default: 3, quick: 1"
    )
    parser.add_argument(
        "--parallel", type=jobs_lib.positive, help="runs at a time; default: 1, quick: 2"
    )
    options, rest = parser.parse_known_args(arguments)
    from heatmap.report import page

    page.libraries()  # asked for now and not after hours
    seeds = options.seeds or (1 if options.quick else 3)
    study = plan(options.out.absolute(), seeds, options.quick, jobs_lib.parse_overrides(rest))
    # A short run starts up and compiles on one core for most of its time.
    parallel = options.parallel or (2 if options.quick else 1)
    all_finished = local.run(study.jobs, parallel)
    write_tables(study)
    missing = [method for method, job in study.pairs[ARMS[0]].items() if not job.is_finished()]
    if missing:
        raise UserError(
            f"There is nothing to compare without the run of {' and '.join(missing)}; the same "
            "command goes on."
        )
    from heatmap import compilation

    compilation.keep()
    compare_decoders(study)
    words = sys.argv[1:] if arguments is None else arguments
    write_results(study, shlex.join(["python", "launch/heatmap_vs_regression.py", *words]))
    if not all_finished:
        raise SystemExit(1)


if __name__ == "__main__":
    guard(main)
