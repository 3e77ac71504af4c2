"""RESULTS.md follows from the committed records alone."""

import json
import shutil
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

from kron_plugin.cli.experiments import improvement
from kron_plugin.cli.main import main

from ..conftest import ROOT

RESULTS = ROOT / "recipes" / "results"
EXAMPLES = Path(__file__).parent / "records"


@pytest.fixture
def records(tmp_path):
    """Two records and some published numbers."""
    return shutil.copytree(EXAMPLES, tmp_path / "recipes" / "results")


@pytest.fixture
def report(records):
    """Make the report of the records; return its text, or the exit code."""

    def call():
        output = records.parent.parent / "RESULTS.md"
        code = main(["report", "--results", str(records), "--output", str(output)])
        return code or output.read_text(encoding="utf-8")

    return call


@pytest.fixture
def add(records):
    """Add a record: a copy of another one, with a function that changes its content."""

    def call(name, change, other="adding"):
        run = json.loads((EXAMPLES / f"{other}.json").read_text())
        change(run)
        (records / f"{name}.json").write_text(json.dumps(run))

    return call


def rows(text, start):
    """The table rows that start like this, as cells."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def note(text, name):
    """A footnote."""
    (found,) = [line for line in text.splitlines() if line.startswith(f"[^{name}]: ")]
    return found.removeprefix(f"[^{name}]: ")


def test_results_md_is_made_from_the_committed_records(report, records, capsys):
    shutil.rmtree(records)
    shutil.copytree(RESULTS, records, ignore=shutil.ignore_patterns("*.png"))
    shutil.copytree(RESULTS.parent / "models", records.parent / "models")
    again = "; run kron-eval report"
    text = report()
    names = sorted(path.name for path in [*records.glob("*.png"), ROOT / "RESULTS.md"])
    wrote = [line.split("/")[-1] for line in capsys.readouterr().err.splitlines()]
    assert sorted(wrote) == names
    assert text == (ROOT / "RESULTS.md").read_text(encoding="utf-8"), again
    pictures = {path.name: path.read_bytes() for path in records.glob("*.png")}
    assert set(pictures) == {path.name for path in RESULTS.glob("*.png")}
    for name in pictures:  # other versions of libraries may draw a little differently
        assert compare_images(RESULTS / name, records / name, tol=5) is None, again
    assert report() == text
    assert pictures == {path.name: path.read_bytes() for path in records.glob("*.png")}


def test_seeds_are_told_together_by_mean_and_worst(report, add):
    def second(run):
        run["command"] += " --seed 2"
        run["seed"] = 2
        run["test"]["metrics"][0]["value"] = 0.001
        run["training"]["seconds"] = 361.0
        run["options"]["model"]["of_a_later_version"] = 1

    add("adding_seed2", second)
    (row,) = rows(report(), "adding, T = 200 ")
    assert row[3] == "0.0008032 (worst 0.001) mean squared error"
    assert row[4] == "ours †[^adding]"
    made = note(report(), "adding").split("; ")
    assert made[:2] == [
        "`adding.sh quick`",
        "seeds [1](recipes/results/adding.json), [2](recipes/results/adding_seed2.json)",
    ]
    assert made[3] == "12,000 updates, 6 min"


def test_rows_whose_weights_are_kept_name_them(report, records):
    weights = records.parent / "models" / "adding.pt"
    weights.parent.mkdir()
    weights.touch()
    text = report()
    assert rows(text, "adding, T = 200 ")[0][4] == "ours[^adding]"
    assert note(text, "adding").endswith("; weights `adding`")
    assert "weights" not in note(text, "pixel_mnist")


def test_more_is_better_for_accuracy_alone(report, add):
    def second(run):
        run["seed"] = 2
        run["test"]["metrics"][0]["value"] = 93.0

    add("seed2", second, "pixel_mnist")
    row = rows(report(), "permuted pixel MNIST")[0]
    assert row[3].startswith("92.48 (worst 91.96) %, ")


def test_a_baseline_may_be_zero():
    scores = {"metrics": [{"name": "mse", "value": 0.5}], "baseline": {"value": 0.0}}
    assert improvement({"task": "adding", "test": scores}) == -0.5


def test_settings_that_differ_in_one_option_make_a_curve(report, records, add):
    def with_factors(factors, recurrent):
        def change(run):
            run["command"] += f" --kron-factors {factors}"
            run["options"]["model"]["kron_factors"] = factors
            run["factors"] = f"{factors} complex"
            run["recurrent_parameters"] = recurrent

        return change

    sizes = {"8,64": 8320, "16,32": 2560, "4,4,4,8": 224}
    for factors, recurrent in sizes.items():
        add(f"factors_{factors}", with_factors(factors, recurrent), "pixel_mnist")
    text = report()
    assert len(list(records.glob("factor_sizes_pixel_mnist.png"))) == 1
    section = text.split("## Factor sizes: permuted pixel MNIST\n")[1].split("\n## ")[0]
    recurrent = [row[2].split()[1] for row in rows(section, "permuted pixel MNIST")]
    assert recurrent == ["(72)", "(224)", "(2,560)", "(8,320)"]
    assert "](recipes/results/factor_sizes_pixel_mnist.png)" in section
    others = rows(text.split("## Factor sizes")[0], "permuted pixel MNIST")
    assert not [row for row in others if row[4].startswith("ours")]


def test_options_that_came_later_do_not_divide_a_curve(report, records, add):
    for i in range(1, 4):

        def change(run, i=i):
            run["command"] += f" --unitary-penalty {i}"
            run["options"]["criterion"]["unitary_penalty"] = i
            run["options"]["optimizer"]["bias_lr_scale"] = 1.0

        add(f"strength_{i}", change, "pixel_mnist")
    assert "Strength of the soft unitary constraint" in report()

    def slower(run):
        run["command"] += " --bias-lr-scale 0.1"
        run["options"]["optimizer"]["bias_lr_scale"] = 0.1

    add("slower", slower, "pixel_mnist")
    assert "slower.json" not in report().split("## Strength of the soft unitary constraint")[1]


def test_options_that_came_later_do_not_divide_the_runs_of_a_setting(report, add):
    def later(run):
        run["seed"] = 2
        run["options"]["optimizer"]["bias_lr_scale"] = 1.0

    add("later", later)
    assert "later.json" in report()


def test_settings_that_differ_in_more_make_no_curve(report, add):
    for i in range(4):

        def change(run, i=i):
            run["command"] += f" --unitary-penalty {i}"
            run["options"]["criterion"]["unitary_penalty"] = i
            run["options"]["optimizer"]["weight_decay"] = i

        add(f"strength_{i}", change, "pixel_mnist")
    assert "Strength of the soft unitary constraint" not in report()


def test_failed_settings_are_told(report, add):
    def stuck(run):
        run["command"] += " --steps 750"
        run["options"]["task"]["steps"] = 750
        run["options"]["model"].update(unitary="hard", num_layers=2, readout="moduli")
        run["factors"] = "16,32 complex"
        run["test"]["metrics"][0]["value"] = 0.16
        run["training"].update(finished=False, seconds=None)

    add("stuck", stuck)
    text = report()
    name = "adding, T = 750, hard-unitary KRU(512, 2 layers, factors 16,32, moduli read)"
    command = "`adding.sh quick --steps 750`"
    seed = "1 of 1 runs, seed [1](recipes/results/stuck.json)"
    problems = ("no better than the trivial baseline", "training ended early")
    failed = text.split("## Failed settings\n\n")[1].splitlines()
    assert failed == [f"- {name}, {command}: {problem} in {seed}." for problem in problems]
    assert [row[0] for row in rows(text, "adding")][:3] == [
        *("adding, T = 200", "adding, T = 600", "adding, T = 600")
    ]
    assert "; 12,000 updates; " in note(text, "stuck")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.pop("curve"), "odd.json: lacks curve; make it with kron-eval record"),
        (lambda run: run.update(test={}), "lacks test.baseline, test.metrics; make it with"),
        (lambda run: run.update(training=5), "lacks training.finished, training.seconds, tr"),
        (lambda run: run.update(task="chess"), "odd.json: its task is 'chess'"),
        (
            lambda run: run["options"]["optimization"].update(clip_norm=5.0),
            "odd.json: trained with clip_norm=5.0, but",
        ),
    ],
)
def test_odd_records_are_named(report, add, capsys, change, message):
    add("odd", change)
    assert report() == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_records_is_named(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path / "R.md")]) == 2
    assert f"--results {tmp_path}: no records there" in capsys.readouterr().err
