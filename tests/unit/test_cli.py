"""The offline commands as a person types them: what is printed where, and the exit status."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from app import cli
from app.registry import Registry
from app.training.recipe import load_recipe
from tests.unit.training.helpers import SINUSOID, feed, recipe, run, write_recipe
from tests.unit.training.pictures import make_folder


class Shell:
    """Runs the command `innerloop` in this process."""

    def __init__(self, monkeypatch, capfd):
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        self._monkeypatch.setattr(sys, "argv", ["innerloop", *map(str, arguments)])
        self._monkeypatch.setattr(sys, "path", [*sys.path])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = self._capfd.readouterr()
        return end.value.code or 0, out, err


@pytest.fixture
def shell(monkeypatch, capfd, tmp_path) -> Shell:
    """The command in an empty working folder, with made-up pools in place of Omniglot."""
    for name in [name for name in os.environ if name.startswith("INNERLOOP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    feed(monkeypatch)
    return Shell(monkeypatch, capfd)


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    write_recipe(folder / "models")
    with pytest.MonkeyPatch.context() as patch:
        feed(patch)
        run(recipe(), folder)
    return folder / "models"


@pytest.fixture
def trained(shell, tiny_models) -> Path:
    """The folder of a tiny model, below the working folder."""
    shutil.copytree(tiny_models, "models")
    return Path("models/tiny")


def check_one_line(status: int, out: str, err: str) -> str:
    """An error of ours is one line on standard error and exit status 1."""
    assert status == 1
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("innerloop: ")
    return lines[0]


def test_the_version_is_printed_alone(shell):
    assert shell("--version") == (0, version("innerloop") + "\n", "")


def test_the_command_is_installed_and_runs_as_a_module_too():
    results = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        for command in (
            [Path(sys.executable).with_name("innerloop")],
            [sys.executable, "-m", "app"],
        )
    ]
    assert {result.stdout for result in results} == {version("innerloop") + "\n"}


@pytest.mark.parametrize("command", [["--help"], []])
def test_help_names_the_commands(shell, command):
    _, out, err = shell(*command)
    for name in ("serve", "train", "evaluate", "models", "db"):
        assert name in out + err


def test_an_unknown_command_is_a_usage_error(shell):
    status, out, err = shell("tarin")
    assert (status, out) == (2, "")
    assert "tarin" in err


def test_training_writes_the_version_beside_its_recipe_and_says_where(shell):
    write_recipe(Path("models"))
    status, out, err = shell("train", "models/tiny/recipe.toml", "--threads", "1")
    folder = Path("models/tiny/1").resolve()
    assert (status, out) == (0, f"Wrote {folder}\n")
    assert "meta-training" in err
    assert Registry(Path("models")).load("tiny", 1).card.made_with["threads"] == "1"
    assert Path("runs/tiny-1/log.jsonl").is_file()


def test_training_goes_where_it_is_told(shell):
    path = write_recipe(Path("elsewhere/models"))
    status, _, _ = shell("train", path, "--run", "my run", "--device", "cpu", "--threads", "1")
    assert status == 0
    assert sorted(path.name for path in Path("my run").iterdir()) == [
        "checkpoint.safetensors",
        "log.jsonl",
        "measured.json",
    ]
    assert Registry(Path("elsewhere/models")).versions("tiny") == [1]


def test_the_data_folder_is_the_options_else_the_settings(shell, monkeypatch):
    folders = feed(monkeypatch)
    write_recipe(Path("models"))
    monkeypatch.setenv("INNERLOOP_DATA_DIR", "from settings")
    shell("train", "models/tiny/recipe.toml", "--threads", "1")
    shell("evaluate", "models/tiny", "--tasks", "2", "--ways", "2", "--data", "from option")
    assert folders == [Path("from settings/omniglot"), Path("from option")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["train", "models/tiny/recipe.toml"], "models/tiny/1 exists already: raise `version`"),
        (["train", "broken.toml"], "broken.toml is no valid recipe: name: "),
        (["evaluate", "models/none"], "no model 'none'. Models here: tiny."),
        (["evaluate", "models/tiny/7"], "no version 7"),
        (["evaluate", "tiny"], "tiny is not in a folder of models: give models/<name>"),
        (["evaluate", "models/tiny", "--split", "exam"], "use one of train, validation, test"),
        (["evaluate", "models/tiny", "--ways", "9"], "ask for smaller tasks"),
        (["evaluate", "models/tiny", "--ways", "1"], "with at least two ways"),
        (["evaluate", "models/tiny", "--device", "tpu"], "There is no device 'tpu'"),
        (["evaluate", "models/tiny", "--device", "cuda:99"], "'cuda:99' is not there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_and_exit_status_1(shell, trained, arguments, message):
    Path("broken.toml").write_text("")
    assert message in check_one_line(*shell(*arguments))


def test_an_error_stays_one_line_however_long_it_is(shell, trained):
    card = trained / "1" / "card.json"
    card.write_text(card.read_text().replace('"steps": 2', '"steps": 0').replace('"tiny"', '""'))
    line = check_one_line(*shell("models", "list"))
    assert len(line) > 200
    assert "tiny/1/card.json is no valid card" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "models/tiny", "--ways", "0"],
        ["evaluate", "models/tiny", "--shots", "0"],
        ["evaluate", "models/tiny", "--tasks", "1"],
        ["evaluate", "models/tiny", "--seed", "-1"],
        ["train", "recipe.toml", "--threads", "-1"],
        ["train"],
    ],
    ids=" ".join,
)
def test_an_option_out_of_range_is_a_usage_error(shell, arguments):
    status, out, err = shell(*arguments)
    assert (status, out) == (2, "")
    assert "Usage: innerloop" in err


@pytest.mark.parametrize("command", [["models", "list"], ["serve"], ["evaluate", "models/tiny"]])
def test_settings_that_are_not_valid_are_named(shell, monkeypatch, command):
    monkeypatch.setenv("INNERLOOP_PORT", "http")
    assert "INNERLOOP_PORT: Input should be a valid integer" in check_one_line(*shell(*command))


EVALUATE = ("--ways", "4", "--shots", "1", "--queries", "3", "--tasks", "6")


def test_json_is_all_that_evaluate_prints_and_holds_the_cards_figure(shell, trained):
    status, out, err = shell("evaluate", trained, *EVALUATE, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report.pop("pool") == "test"
    figure = Registry(Path("models")).card("tiny", 1).figures[0]
    assert report == figure.model_dump(mode="json"), "the default seed is the card's"


def test_evaluate_prints_accuracy_interval_steps_and_baseline(shell, trained):
    status, out, err = shell("evaluate", trained / "1", *EVALUATE, "--steps", "3")
    assert status == 0
    report = json.loads(shell("evaluate", trained, *EVALUATE, "--steps", "3", "--json")[1])
    low, high = report["confidence_interval_95"]
    assert "4-way 1-shot, 3 queries a class, 6 tasks of the test classes, seed 2" in out
    assert f"accuracy {report['accuracy']:.2f} %   95 % interval {low:.2f} to {high:.2f}" in out
    assert f"nearest class mean of θ's features {report['nearest_class_mean']:.2f} %" in out
    assert len(report["accuracy_by_step"]) == 4
    for value in report["accuracy_by_step"]:
        assert f"{value:.2f}" in out
    assert "4-way 1-shot" in err, "progress is shown aside"


def test_evaluate_says_how_honest_the_confidence_is(shell, trained):
    out = shell("evaluate", trained, "--ways", "3", *EVALUATE[2:])[1]
    wanted = ("evaluate", trained, "--ways", "3", *EVALUATE[2:], "--json")
    report = json.loads(shell(*wanted)[1])
    assert f"expected calibration error {report['calibration_error']:.4f}" in out
    assert f"AUROC {report['outlier_auroc']:.4f}" in out


def test_a_version_without_a_calibration_gets_one_and_keeps_its_theta(shell, trained):
    registry = Registry(Path("models"))
    card = registry.card("tiny", 1)
    registry.rewrite(card.model_copy(update={"calibration": None}))
    status, out, _ = shell("models", "calibrate", trained)
    assert status == 0
    assert "Wrote the calibration of" in out
    again = registry.load("tiny", 1).card
    differs = {"calibration": None, "figures": ()}
    assert again.model_copy(update=differs) == card.model_copy(update=differs)
    for ours, theirs in zip(again.figures, card.figures, strict=True):
        honest = {"calibration_error": None, "outlier_auroc": None}
        assert ours.model_copy(update=honest) == theirs.model_copy(update=honest)
        for name in honest:
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=0.02)
    for name in ("temperature", "outlier"):  # the job fits the same, but for rounding
        fitted = getattr(card.calibration, name)
        assert getattr(again.calibration, name) == pytest.approx(fitted, rel=0.02, abs=0.02)


def test_a_regression_cannot_be_calibrated(shell, regression):
    status, _, err = shell("models", "calibrate", regression)
    assert status == 1
    assert "cannot be calibrated" in " ".join(err.split())


def test_card_writes_the_page_that_a_person_reads(shell, trained):
    status, out, _ = shell("models", "card", trained)
    assert status == 0
    assert "README.md" in out
    assert (trained / "README.md").read_text(encoding="utf-8").startswith("# tiny\n")


@pytest.fixture
def regression(shell) -> Path:
    """The folder of a model of sinusoids, below the working folder."""
    path = write_recipe(Path("models"), base=SINUSOID)
    assert shell("train", path, "--threads", "1")[0] == 0
    return path.parent


def test_evaluate_prints_the_error_of_a_regression(shell, regression):
    wanted = ("--ways", "1", "--shots", "5", "--queries", "6", "--tasks", "5")
    status, out, _ = shell("evaluate", regression, *wanted)
    assert status == 0
    [figure] = Registry(Path("models")).card("tiny", 1).figures
    low, high = figure.confidence_interval_95
    said = f"mean squared error {figure.mse:.4f}   95 % interval {low:.4f} to {high:.4f}"
    assert said in out, "the default seed is the card's"
    assert "accuracy" not in out
    assert "nearest class mean" not in out
    report = json.loads(shell("evaluate", regression, *wanted, "--json")[1])
    assert report == figure.model_dump(mode="json") | {"pool": "test"}


def test_list_says_which_model_is_of_regression(shell, regression):
    assert "regression" in shell("models", "list")[1]


def test_serving_a_model_of_regression_is_refused_in_one_line(shell, regression, monkeypatch):
    monkeypatch.setenv("INNERLOOP_PORT", "0")
    for name in ("configure", "signal.signal"):  # this process keeps its own
        monkeypatch.setattr(f"app.api.serve.{name}", lambda *_: None)
    line = check_one_line(*shell("serve"))
    assert "tiny version 1 cannot be served, models of regression are not served" in line


def test_a_new_model_of_ones_own_pictures_says_what_was_found_and_what_to_do_next(shell):
    make_folder(Path("pictures"), [3, *[6] * 19])
    status, out, err = shell("models", "new", "signs", "--data", "pictures")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "pictures: 20 classes of 3 to 6 pictures, grey, dark on light",
        "Classes with too few pictures for the largest tasks: 1",
        "Wrote models/signs/recipe.toml: pictures made to fit 28 x 28. Next:",
        "  innerloop train models/signs/recipe.toml",
        "  innerloop evaluate models/signs --ways 3",
    ]
    assert load_recipe(Path("models/signs/recipe.toml")).data.folder == "../../pictures"


def test_a_new_model_is_made_in_the_models_folder_of_the_settings(shell, monkeypatch):
    make_folder(Path("pictures"), [3] * 6, colour=True)
    monkeypatch.setenv("INNERLOOP_MODELS_DIR", "somewhere")
    status, out, _ = shell("models", "new", "signs", "--data", "pictures")
    assert status == 0
    assert "6 classes of 3 pictures, colour" in out
    assert "innerloop train somewhere/signs/recipe.toml" in out


def test_a_new_model_that_cannot_be_made_is_one_line(shell):
    make_folder(Path("pictures"), [3] * 6)
    for name, folder, message in [
        ("Signs", "pictures", "cannot be a model's name"),
        ("signs", "nowhere", "nowhere cannot be read"),
        ("signs", "models", "models cannot be read"),
    ]:
        assert message in check_one_line(*shell("models", "new", name, "--data", folder))
    assert shell("models", "new", "signs", "--data", "pictures")[0] == 0
    line = check_one_line(*shell("models", "new", "signs", "--data", "pictures"))
    assert "models/signs/recipe.toml exists already" in line
    assert shell("models", "new", "signs")[0] == 2, "the folder must be named"


def test_list_shows_every_version_with_its_whole_digest(shell, trained, monkeypatch):
    write_recipe(Path("models"), ("version = 1", "version = 2"))
    shell("train", "models/tiny/recipe.toml", "--threads", "1")
    status, out, err = shell("models", "list")
    assert (status, err) == (0, "")
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    named = [[cell.strip() for cell in row[:4]] for row in rows if row[0].strip()]
    assert named == [["tiny", str(number), "classification", "2"] for number in (1, 2)]
    registry = Registry(Path("models"))
    digests = [registry.card("tiny", number).theta_sha256 for number in (1, 2)]
    assert "".join(row[-1].strip() for row in rows) == "".join(digests)


def test_list_without_models_is_empty_and_no_error(shell):
    status, out, err = shell("models", "list")
    assert (status, err) == (0, "")
    assert "model" in out


def test_list_finds_a_theta_that_was_changed(shell, trained):
    path = trained / "1" / "theta.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    line = check_one_line(*shell("models", "list"))
    assert "theta.safetensors has the SHA-256" in line


def test_list_reads_the_models_folder_of_the_settings(shell, trained, monkeypatch):
    monkeypatch.setenv("INNERLOOP_MODELS_DIR", "somewhere")
    assert "tiny" not in shell("models", "list")[1]
    Path("models").rename("somewhere")
    assert "tiny" in shell("models", "list")[1]


def test_upgrading_the_database_twice_is_harmless(shell):
    assert [shell("db", "upgrade")[0] for _ in range(2)] == [0, 0]
    assert Path("data/innerloop.db").is_file()


def test_a_network_of_ones_own_is_looked_for_in_the_working_folder_but_last(shell):
    Path("somebodys_module.py").write_text("made = 5\n")
    own = ('name = "mlp"\nhidden = [8, 8]', 'name = "somebodys_module.network"')
    path = write_recipe(Path("models"), own, base=SINUSOID)
    message = check_one_line(*shell("train", path))
    assert "network 'somebodys_module:network': module 'somebodys_module' (" in message
    assert str(Path.cwd() / "somebodys_module.py") in message
    assert "has no 'network'" in message
    assert sys.path[-1] == str(Path.cwd())


def test_list_shows_the_others_beside_a_broken_one(shell, trained):
    shutil.copytree(trained / "1", trained / "2")
    status, out, err = shell("models", "list")
    assert status == 1
    assert "tiny" in out
    assert "2/card.json is the card of tiny 1" in " ".join(err.split())


def test_a_recipe_of_another_name_than_its_folder_is_refused(shell, tmp_path):
    path = write_recipe(tmp_path / "models", ('name = "tiny"', 'name = "other"'))
    status, _, err = shell("train", path, "--threads", "1")
    assert status == 1
    assert 'says name = "other" and lies in the folder tiny' in " ".join(err.split())
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["tiny"]
