"""The README says what is so."""

from pathlib import Path

from app.settings import Settings

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def settings_table() -> list[str]:
    """The rows of the README's table of settings, as the code has them."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = str(field.default) or "(see the meaning)"
        rows.append(f"| `INNERLOOP_{name.upper()}` | `{default}` | {field.description} |")
    return rows


def test_every_setting_stands_in_the_readme_with_its_default_and_meaning():
    assert [row for row in settings_table() if row not in README] == []


def test_the_readme_names_no_setting_that_is_not_there():
    known = {f"INNERLOOP_{name.upper()}" for name in Settings.model_fields}
    named = {word.strip("`") for word in README.split() if word.startswith("`INNERLOOP_")}
    assert named <= known
