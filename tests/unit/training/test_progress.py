import pytest

from app.training.progress import ConsoleReporter
from app.training.recipe import Measure

LINE = {
    "iteration": 500,
    "loss": 0.12345,
    "validation_accuracy": 93.456,
    "validation_nearest_class_mean": 90.0,
}


def report(reporter: ConsoleReporter) -> None:
    with reporter:
        reporter.loading("Decoding images_background", 3, 0)
        reporter.loading("Decoding images_background", 5, 10)
        reporter.iteration(500, 1000, 0.25, 0.915)
        reporter.validation(LINE)
        reporter.measuring(Measure(ways=5, shots=1, tasks=10), 10)


def test_a_run_is_shown_on_standard_error_and_leaves_standard_output_alone(
    capsys: pytest.CaptureFixture[str],
):
    report(ConsoleReporter())
    shown = capsys.readouterr()
    assert shown.out == ""
    line = "iteration 500: loss 0.1235, validation accuracy 93.46 %, nearest class mean 90.00 %"
    assert line in shown.err.splitlines()
    for part in ("Decoding images_background", "loss 0.250  score 0.915", "5-way 1-shot"):
        assert part in shown.err


def test_a_silent_reporter_shows_nothing(capsys: pytest.CaptureFixture[str]):
    report(ConsoleReporter(silent=True))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_of_a_regression_the_error_is_shown(capsys: pytest.CaptureFixture[str]):
    with ConsoleReporter() as reporter:
        reporter.validation({"iteration": 20, "loss": 4.25, "mse": 4.5, "validation_mse": 3.14159})
    assert "iteration 20: loss 4.2500, validation error 3.1416" in capsys.readouterr().err
