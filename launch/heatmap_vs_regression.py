"""Heatmaps or direct regression? Trains both, varies what may matter, and writes the report.

    python launch/heatmap_vs_regression.py --out=runs/study
    python launch/heatmap_vs_regression.py --out=runs/quick --quick

Both networks on the same stick figures, with several seeds; then heatmaps of other sizes, widths
and without skips, and every decoder on the maps of every width. Finished runs are skipped and
interrupted ones go on, so the same command continues. --quick goes the whole way in minutes, on
small pictures and a few steps: its report shows what there will be, not which method is better.

OUT/NAME/                     each run's workdir, as main.py leaves it
OUT/ablations/NAME/sweep.csv  the scores of one comparison
OUT/results/                  report.html, report.md, visualizations/, training_log.json and the
                              best weights of both methods, for PyTorch too where it is installed
"""

import csv
import dataclasses
import importlib.util
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from heatmap import command_line, workdir
from heatmap.errors import UserError, guard
from launch import hyper, local
from launch import jobs as jobs_lib
from launch.jobs import SWEEP, Job, statuses, write_table

SPLIT = "test"
CONFIGS = {"heatmap": "configs/sigma2.py", "regression": "configs/regression.py"}
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
        "train.steps": 48,
        "train.eval_every_steps": 16,
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
    """

    out: pathlib.Path
    tables: Mapping[str, Sequence[Job]]

    @property
    def jobs(self) -> list[Job]:
        """Every run once, the two methods first."""
        return list({job.name: job for jobs in self.tables.values() for job in jobs}.values())

    @property
    def pair(self) -> dict[str, Job]:
        """The runs of both methods with the first seed, by method."""
        return {method: self.jobs[i] for i, method in enumerate(CONFIGS)}

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
    """
    side, settings = (QUICK_SIDE, QUICK) if quick else (FULL_SIDE, FULL)

    def square(size: int) -> str:
        return f"({size},{size})"

    shared = {"data.image_size": square(side), **settings, **overrides}
    maps = [square(side // stride) for stride in STRIDES]
    own = {
        "targets.heatmap_size": square(side // STRIDE),
        "targets.sigma": SIGMA,
        "model.skip": True,
        "seed": 0,
    }

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
    return Study(
        out,
        {
            "methods": methods,
            "resolution": vary(
                "targets.heatmap_size",
                {f"maps{side // stride}": size for stride, size in zip(STRIDES, maps, strict=True)},
            ),
            "sigma": vary("targets.sigma", {f"sigma{sigma:g}": sigma for sigma in SIGMAS}),
            "skip": vary("model.skip", {"skip": True, "no_skip": False}),
        },
    )


def write_tables(study: Study) -> None:
    """Writes the table of every comparison."""
    for name, jobs in study.tables.items():
        write_table(jobs, statuses(jobs), study.table(name))


def compare_decoders(study: Study) -> None:
    """Writes the table of every decoder on the maps of every width, each from one checkpoint."""
    import jax

    import input_pipeline
    from heatmap import decoding, evaluate
    from heatmap import run as run_lib

    lines: list[dict[str, Any]] = []
    for job in study.tables["sigma"]:
        if not job.is_finished():
            continue
        run = run_lib.open_run(job.workdir)
        records, split = input_pipeline.load(run.config.data)
        held_out = records.take(split.rows[SPLIT])
        raw = jax.jit(lambda weights, image, run=run: run.network.predict(weights, image))
        for label, settings in DECODERS.items():
            config = dataclasses.replace(
                run.config, decoder=dataclasses.replace(run.config.decoder, **settings)
            )

            def read(weights, batch, run=run, raw=raw, config=config):
                maps = raw(weights, run_lib.normalise_pixels(batch["image"], run.config))
                return decoding.decode(config, maps), 0.0, 0.0

            with jax.set_mesh(run.mesh):
                found, loss = evaluate.predict(run, read, run.weights, held_out)
            scores = evaluate.score(dataclasses.replace(run, config=config), SPLIT, found, loss)
            columns = {"targets.sigma": job.columns["targets.sigma"], "decoder": label}
            name = f"{job.name}-{label}"
            lines.append({"name": name, "status": "finished", **columns, **scores})
    if not lines:
        return
    path = study.table("decoder")
    with workdir.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def write_results(study: Study) -> None:
    """Collects what the specification asks for in OUT/results."""
    from heatmap.report import __main__ as report_lib
    from heatmap.report import markdown, page

    results = study.out / "results"
    logs: dict[str, Any] = {}
    for method, job in study.pair.items():
        logs |= json.loads((job.workdir / workdir.TRAINING_LOG).read_text())
        _copy_best(job.workdir, results / f"{method}_model")
        if importlib.util.find_spec("torch"):
            from benchmarks import to_pth

            to_pth.save(job.workdir, results / f"{method}_model.pth")
    workdir.write_json(results / workdir.TRAINING_LOG, logs)
    tables = [study.table(name) for name in (*study.tables, "decoder")]
    folders = [job.workdir for job in study.pair.values()]
    comparison, gallery = report_lib.report(
        folders, SPLIT, [path for path in tables if path.is_file()]
    )
    markdown.write(results / "report.md", comparison, gallery, "visualizations")
    page.write(results / "report.html", comparison, gallery)
    print(f"wrote {results / 'report.md'} and {results / 'report.html'}")
    for sentence in comparison.text["summary"]:
        print(sentence)


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
    parser.add_argument("--seeds", type=jobs_lib.positive, help="of each method; default: 3, or 1")
    parser.add_argument("--parallel", type=jobs_lib.positive, default=1, help="runs at a time")
    options, rest = parser.parse_known_args(arguments)
    from heatmap.report import page

    page.libraries()  # asked for now and not after hours
    seeds = options.seeds or (1 if options.quick else 3)
    study = plan(options.out.absolute(), seeds, options.quick, jobs_lib.parse_overrides(rest))
    all_finished = local.run(study.jobs, options.parallel)
    write_tables(study)
    missing = [method for method, job in study.pair.items() if not job.is_finished()]
    if missing:
        raise UserError(
            f"There is nothing to compare without the run of {' and '.join(missing)}; the same "
            "command goes on."
        )
    compare_decoders(study)
    write_results(study)
    if not all_finished:
        raise SystemExit(1)


if __name__ == "__main__":
    guard(main)
