"""The command line: finding commands, help, wrong input; the commands have their own tests."""

import importlib

import pytest

from keras_lowbit.cli import app


def tree(table, *path):
    """Every command and group below a table: (the words that call it, its line in the table)."""
    for name, entry in table.items():
        yield (*path, name), entry
        if isinstance(entry, app.Group):
            yield from tree(entry.commands, *path, name)


ENTRIES = dict(tree(app.COMMANDS))
GROUPS = [(), *(path for path, entry in ENTRIES.items() if isinstance(entry, app.Group))]
COMMANDS = [path for path, entry in ENTRIES.items() if isinstance(entry, app.Command)]


def call(*arguments):
    return app.main(["keras-lowbit", *arguments])


def table_of(group):
    return ENTRIES[group].commands if group else app.COMMANDS


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("word", app.HELP)
def test_help_names_every_command(group, word, capsys):
    assert call(*group, word) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in table_of(group))


@pytest.mark.parametrize("group", GROUPS)
def test_no_command_shows_the_usage_and_is_an_error(group, capsys):
    assert call(*group) == 2
    assert f"usage: {' '.join(('keras-lowbit', *group))} <command>" in capsys.readouterr().out


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_command_is_named_and_the_known_ones_listed(group, capsys):
    assert call(*group, "deploi") == 2
    shown = capsys.readouterr().err
    assert "unknown command 'deploi'" in shown
    assert all(name in shown for name in table_of(group))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_its_flags(path, capsys):
    assert call(*path, "--help") == 0
    shown = capsys.readouterr().out
    name = " ".join(("keras-lowbit", *path))
    assert shown.startswith(f"{name}: ")
    assert f"\n    {name}" in shown
    flags = importlib.import_module(ENTRIES[path].module).FLAGS
    assert all(f"--{flag}" in shown or f"--[no]{flag}" in shown for flag in flags)
    assert "--flagfile" not in shown


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_unknown_flag_is_an_error_that_points_to_the_help(path, capsys):
    assert call(*path, "--wrong=1") == 2
    shown = capsys.readouterr().err
    assert "wrong" in shown
    assert f"{' '.join(('keras-lowbit', *path))} --help" in shown


def test_what_is_left_over_is_an_error(capsys):
    assert call("doctor", "now") == 2
    assert "unexpected 'now'" in capsys.readouterr().err


def test_value_out_of_range_is_an_error_with_the_value(capsys):
    assert call("demo", "--epochs=2") == 2
    assert "2" in capsys.readouterr().err


def test_a_network_that_is_none_is_named_beside_those_that_are(capsys, tmp_path):
    output = str(tmp_path / "verify.json")
    assert call("bench", "verify", "--model", "ResNet1520", "--output", output) == 2
    said = capsys.readouterr().err
    assert "--model=ResNet1520: keras.applications has no such network, but " in said
    assert "ResNet152V2" in said
