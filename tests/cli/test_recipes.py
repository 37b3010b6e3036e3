"""`keras-lowbit recipes`: the table, the JSON, and one recipe that reads back."""

from keras_lowbit import recipes
from keras_lowbit.cli.recipes import needs


def test_lists_every_recipe(call):
    found = call("recipes")
    assert found.status == 0
    rows = {line.split()[0] for line in found.out.splitlines()[2:]}
    assert rows == set(recipes.names())
    assert max(map(len, found.out.splitlines())) < 250


def test_json_has_every_recipe_and_what_it_needs(call):
    found = call("recipes", "--json").fields["recipes"]
    assert list(found) == recipes.names()
    assert {
        name: found[name]["needs"] for name in ("int8", "sq-twn", "twn", "inq-5", "lsq-4", "fat", "dfp-4w8a-n4")
    } == {
        "lsq-4": "fit",
        "int8": "none",
        "sq-twn": "fit",
        "twn": "fit",
        "inq-5": "fit",
        "fat": "distill",
        "dfp-4w8a-n4": "none",
    }


def test_what_a_recipe_needs_has_one_of_three_names():
    assert {needs(recipes.get(name)) for name in recipes.names()} == {"none", "fit", "distill"}


def test_one_recipe_is_a_file_that_is_a_recipe(call, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(call("recipes", "fat-w4").out)
    assert recipes.Recipe.from_json(path.read_text()) == recipes.get("fat-w4")
    assert call("recipes", path).out == path.read_text()


def test_bad_recipes_are_refused(call, tmp_path):
    assert call("recipes", "int9").refused("Unknown recipe 'int9'", "int8")
    assert call("recipes", tmp_path / "none.json").refused("none.json")
    (tmp_path / "broken.json").write_text("{")
    assert call("recipes", tmp_path / "broken.json").refused("broken.json", "Not a recipe")
    assert call("recipes", "int8", "twn").refused("unexpected 'twn'")
