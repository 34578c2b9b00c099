"""Options that are read quickly are those that the full command line reads."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from poise.cli.app import app
from poise.cli.quick_options import quick_options
from poise.cli.run import run

SEEN = {}
words = st.text("ab-=0 ", min_size=1, max_size=4)
options = st.one_of(
    st.sampled_from([["--flag"], ["-f"], ["--no-flag"], ["--help"], ["--unknown"], ["-fq"], ["--flag=1"], ["--"]]),
    st.tuples(st.sampled_from(["--out", "--name", "--several", "--rate", "--count"]), words).map(list),
    st.tuples(st.sampled_from(["--out", "--name", "--several"]), words).map("=".join).map(lambda text: [text]),
    st.tuples(st.just("--rate"), st.floats(0, 1).map(str)).map(list),
    st.tuples(st.just("--count"), st.integers(0, 9).map(str)).map(list),
)


def command(
    context: typer.Context,
    script: Annotated[str, typer.Argument()],
    flag: Annotated[bool, typer.Option("--flag", "-f")] = False,
    out: Annotated[Path | None, typer.Option()] = None,
    several: Annotated[list[str] | None, typer.Option()] = None,
    rate: Annotated[float, typer.Option()] = 0.5,
    count: Annotated[int | None, typer.Option()] = None,
    a_name: Annotated[str | None, typer.Option("--name")] = None,
    bounded: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    SEEN.update(
        script=script, args=list(context.args), flag=flag, out=out, several=several or None, rate=rate, count=count,
        a_name=a_name, bounded=bounded,
    )  # fmt: skip


DEFAULTS = {
    "flag": False, "out": None, "several": None, "rate": 0.5, "count": None, "a_name": None, "bounded": 1,
}  # fmt: skip
TYPER = typer.Typer(add_completion=False)
TYPER.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(command)


@settings(deadline=None, max_examples=150)
@given(given_options=st.lists(options, max_size=3), rest=st.lists(words, max_size=3))
def test_what_is_read_quickly_is_what_typer_reads(given_options, rest):
    argv = [word for option in given_options for word in option] + rest
    quick = quick_options(command, argv)
    if quick is None:
        return
    SEEN.clear()
    result = CliRunner().invoke(TYPER, argv)
    assert result.exit_code == 0, result.output
    assert {**DEFAULTS, **quick.options, "script": quick.script, "args": quick.args} == SEEN


def test_options_stand_before_the_script_and_may_be_repeated():
    quick = quick_options(
        command, ["-f", "--several", "a", "--several=b", "--count", "3", "--out", "x", "t.py", "--out", "y", "-f"]
    )
    assert quick.options == {"flag": True, "several": ["a", "b"], "count": 3, "out": Path("x")}
    assert (quick.script, quick.args) == ("t.py", ["--out", "y", "-f"])


@pytest.mark.parametrize(
    "argv",
    [
        [], ["--help"], ["--count", "x", "t.py"], ["--count"], ["--unknown", "t.py"], ["--flag=1", "t.py"],
        ["--bounded", "2", "t.py"], ["--out", "--flag", "t.py"], ["-q", "t.py"],
    ],
)  # fmt: skip
def test_everything_else_is_left_to_typer(argv):
    assert quick_options(command, argv) is None


def test_every_option_of_run_is_read_quickly():
    values = {"--seed": "1", "--overhead": "0.1"}
    for parameter in typer.main.get_command(app).commands["run"].params:
        for flag in [f for f in parameter.opts if f.startswith("-") and f != "--help"]:
            value = [] if parameter.is_flag else [values.get(flag, "x")]
            quick = quick_options(run, [flag, *value, "t.py"])
            assert quick is not None, flag
            assert set(quick.options) == {parameter.name}
