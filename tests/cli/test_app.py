"""The command line: finding commands, help, wrong input; the commands have their own tests."""

import importlib

import pytest

from keras_lowbit.cli import app


def test_help_names_every_command(capsys):
    assert app.main(["keras-lowbit", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in app.COMMANDS)


def test_no_command_shows_the_usage_and_is_an_error(capsys):
    assert app.main(["keras-lowbit"]) == 2
    assert "usage: keras-lowbit <command>" in capsys.readouterr().out


def test_unknown_command_is_named_and_the_known_ones_listed(capsys):
    assert app.main(["keras-lowbit", "deploi"]) == 2
    shown = capsys.readouterr().err
    assert "unknown command 'deploi'" in shown
    assert "demo" in shown


@pytest.mark.parametrize("name", app.COMMANDS)
def test_every_command_has_help_with_its_flags(name, capsys):
    assert app.main(["keras-lowbit", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"keras-lowbit {name}: ")
    flags = importlib.import_module(f"keras_lowbit.cli.{name}").FLAGS
    assert all(f"--{flag}" in shown or f"--[no]{flag}" in shown for flag in flags)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_unknown_flag_is_an_error_that_points_to_the_help(name, capsys):
    assert app.main(["keras-lowbit", name, "--wrong=1"]) == 2
    shown = capsys.readouterr().err
    assert "wrong" in shown
    assert f"keras-lowbit {name} --help" in shown


def test_value_out_of_range_is_an_error_with_the_value(capsys):
    assert app.main(["keras-lowbit", "demo", "--epochs=2"]) == 2
    assert "2" in capsys.readouterr().err
