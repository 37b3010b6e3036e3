import dataclasses
import json

import pytest

from keras_lowbit import callbacks, quantizers, recipes
from keras_lowbit.quantizers import ActivationRange, Binary, Incremental, PowerOfTwo, Stochastic, Ternary, Uniform
from keras_lowbit.recipes import Recipe, Rule

NAMES = recipes.names()
CUSTOM = Recipe(
    "mine",
    (
        Rule(None, layers=r"stem|.*/stem", position="first"),
        Rule(Uniform(4, calibration="mse"), kinds=("depthwise", "dense")),
        Rule(Stochastic(Ternary(centered=True, granularity="tensor"), probability="softmax"), position="last"),
    ),
    ActivationRange(bits=4, momentum=0.9),
    {"ratio": (0.5, 1.0)},
    {"batch_size": 7, "betas": (0.9, 0.99)},
    "nowhere",
)
EVERY = [*map(recipes.get, NAMES), CUSTOM]
every = pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)


def test_the_promised_names_are_there():
    assert {"int8", "sq-twn", "sq-bwn", "twn", "bwn"} <= set(NAMES)


@every
def test_json_both_ways_is_equal_and_plain(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipes.get(json.loads(recipe.to_json())) == recipe
    assert Recipe.from_config(recipe.get_config()).to_json() == recipe.to_json()
    assert recipe.get_config()["format_version"] == 2


@every
def test_prints_every_rule_the_activations_and_the_schedule(recipe):
    lines = str(recipe).splitlines()
    assert lines[0] == f"Recipe {recipe.name!r} ({recipe.source})"
    for line, rule in zip(lines[1:], recipe.plan, strict=False):
        assert repr(rule.layers) in line
        assert str(rule.kernel or "float") in line
        assert all(kind in line for kind in rule.kinds)
        assert rule.position == "any" or f"{rule.position} one" in line
    activations, schedule, *steps = lines[len(recipe.plan) + 1 :]
    assert activations.startswith("  activations: ")
    assert schedule.startswith("  schedule: ")
    assert steps == ([f"  steps: {' -> '.join(recipe.steps)}"] if recipe.steps else [])


def test_what_the_recipes_hold():
    assert recipes.get("sq-twn").plan == (Rule(Stochastic(Ternary())),)
    assert recipes.get("sq-bwn").plan == (Rule(Stochastic(Binary())),)
    assert recipes.get("int8").plan == (Rule(Uniform(8)),)
    for bits in (2, 3, 4, 5):
        assert recipes.get(f"inq-{bits}").plan == (Rule(Incremental(PowerOfTwo(bits))),)
    for bits in (2, 3):
        fitted = recipes.get(f"inq-{bits}-mse")
        assert fitted.plan == (Rule(Incremental(PowerOfTwo(bits, granularity="channel", calibration="mse"))),)
        assert dataclasses.replace(fitted, name=f"inq-{bits}", plan=()) == recipes.get(f"inq-{bits}").replace(plan=())
    for name in NAMES:
        recipe = recipes.get(name)
        assert recipe.name == name
        assert quantizers.is_activation_quantizer(recipe.activations)
        assert recipe.activations.bits == {"int16x8": 16, "lsq-4": 4, "lsq-3": 3, "lsq-2": 2}.get(name, 8)
        assert recipe.source


def test_w4_has_eight_bits_at_both_ends_and_names_its_steps():
    w4 = recipes.get("w4")
    assert [(rule.position, rule.kernel.bits) for rule in w4.plan] == [("first", 8), ("last", 8), ("any", 4)]
    assert w4.steps == ("equalize", "calibrate", "correct_biases", "reconstruct", "distill")
    assert [rule.kernel.bits for rule in recipes.w4(3, first=None, last=None).plan] == [3]
    assert recipes.w4(3).name == "w3"


def test_w4_takes_other_bits_for_depthwise_convolutions():
    recipe = recipes.get("w4-depthwise-8")
    assert recipe == recipes.w4(depthwise=8)
    assert recipe.kernel_quantizer("a", "a", "depthwise").bits == 8
    assert recipe.kernel_quantizer("a", "a", "conv2d").bits == 4
    assert recipe.kernel_quantizer("a", "a", "depthwise", ("first",)) == recipes.get("w4").plan[0].kernel


@pytest.mark.parametrize("steps", ["calibrate", ["calibrate", "equalize"], ["train"]])
def test_steps_are_known_names_and_equalize_comes_first(steps):
    with pytest.raises(ValueError, match=r"Recipe 'mine' got steps=.*; give some of \('equalize', .* as the first"):
        CUSTOM.replace(steps=steps)


def test_get_takes_a_recipe_a_dict_or_a_name():
    assert recipes.get(CUSTOM) is CUSTOM
    assert recipes.get(CUSTOM.get_config()) == CUSTOM
    with pytest.raises(ValueError, match=r"Unknown recipe 'sqtwn'. Known recipes, the most alike first: sq-twn, "):
        recipes.get("sqtwn")
    with pytest.raises(TypeError, match=r"a name, a dict or a Recipe, got 8. Known recipes: "):
        recipes.get(8)


def test_recipes_are_values_that_share_nothing():
    first, second = recipes.get("sq-twn"), recipes.get("sq-twn")
    assert first == second
    first.training["learning_rate"] = 7.0
    assert second.training["learning_rate"] == recipes.get("sq-bwn").training["learning_rate"] == 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.name = "other"
    assert first.replace(activations=None).activations is None
    assert first.activations is not None


@pytest.mark.parametrize("version", [None, 0, -1, 3, "1", 1.0, True])
def test_another_format_version_is_refused(version):
    config = {**CUSTOM.get_config(), "format_version": version}
    with pytest.raises(ValueError, match=rf"format version {version!r} cannot be read; .* reads 1 to 2"):
        Recipe.from_config(config)
    del config["format_version"]
    with pytest.raises(ValueError, match="no format_version"):
        recipes.get(config)


def test_unknown_and_missing_fields_are_named():
    config = CUSTOM.get_config()
    with pytest.raises(ValueError, match=r"A recipe has no field \['epochs'\]; it has \['activations', "):
        Recipe.from_config(config | {"epochs": 3})
    with pytest.raises(ValueError, match=r"A recipe needs the field \['plan'\]"):
        Recipe.from_config({key: value for key, value in config.items() if key != "plan"})
    with pytest.raises(ValueError, match=r"A rule has no field \['bits'\]; it has \['kernel', "):
        Recipe.from_config(config | {"plan": [{"kernel": "ternary", "bits": 2}]})
    with pytest.raises(ValueError, match=r"A rule needs the field \['kernel'\]"):
        Recipe.from_config(config | {"plan": [{"layers": ".*"}]})
    with pytest.raises(ValueError, match=r"unknown schedule keys \['rate'\]; known: \['portions', 'ratio'\]"):
        Recipe.from_config(config | {"schedule": {"rate": 1}})
    with pytest.raises(ValueError, match="Unknown quantizer 'ternery'"):
        Recipe.from_config(config | {"activations": {"name": "ternery"}})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"sq-twn"', "null"])
def test_text_that_is_no_recipe_says_so(text):
    with pytest.raises(ValueError, match=r"Not a recipe: .*Expected the JSON"):
        Recipe.from_json(text)


def test_what_json_cannot_hold_is_refused_at_once():
    with pytest.raises(ValueError, match="needs a plain dict as training"):
        Recipe("x", (), training={"optimizer": object()})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": "(conv"}, "not a regular expression"),
        ({"kinds": ("conv2d", "conv3d")}, r"unknown kinds \['conv3d'\]; choose from"),
        ({"position": "middle"}, "position='middle'; choose one of"),
        ({"kernel": "ternery"}, "Unknown quantizer 'ternery'. Known names"),
    ],
)
def test_a_bad_rule_fails_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        Rule(**{"kernel": "ternary"} | arguments)


@pytest.mark.parametrize("kind", recipes.plan.KINDS)
@pytest.mark.parametrize("positions", [(), ("first",), ("last",), ("first", "last")])
def test_a_rule_matches_when_kind_position_and_pattern_all_do(kind, positions):
    for kinds in [(), ("conv2d",), ("dense", "separable")]:
        for position in ("any", "first", "last"):
            for pattern, named in [(".*", True), ("conv", True), ("block/conv", True), ("con", False), ("onv", False)]:
                rule = Rule("ternary", pattern, kinds, position)
                want = named and (not kinds or kind in kinds) and (position == "any" or position in positions)
                assert rule.matches("conv", "block/conv", kind, positions) == want


def test_the_first_matching_rule_decides_and_no_rule_is_float():
    assert CUSTOM.kernel_quantizer("stem", "stem", "conv2d", ("first",)) is None
    assert CUSTOM.kernel_quantizer("stem", "stem", "dense", ()) == Uniform(4, calibration="mse")
    assert isinstance(CUSTOM.kernel_quantizer("top", "top", "conv2d", ("last",)), Stochastic)
    assert CUSTOM.kernel_quantizer("top", "top", "conv2d", ()) is None


def test_callbacks_build_the_schedule():
    (schedule,) = recipes.get("sq-twn").callbacks(epochs=8, reset_optimizer=False)
    assert isinstance(schedule, callbacks.RatioSchedule)
    assert (schedule.epochs, schedule.reset_optimizer) == (8, False)
    assert len(CUSTOM.callbacks(epochs=2)) == 1  # two stages
    assert recipes.get("int8").callbacks(epochs=1) == []


def test_fewer_epochs_than_stages_is_an_error():
    with pytest.raises(ValueError, match="4"):
        recipes.get("sq-twn").callbacks(epochs=1)
    with pytest.raises(ValueError, match="2"):
        CUSTOM.callbacks(epochs=1)


def test_rules_take_short_names_and_dicts():
    assert Rule("ternary") == Rule({"name": "ternary"}) == Rule(Ternary())
    assert Recipe("x", ({"kernel": "binary"},), "activation").plan == (Rule(Binary()),)
    assert Recipe("x", (), "activation").activations == quantizers.get("activation")


@pytest.mark.parametrize("name", ["int8", "fat", "dfp-2w8a-n4"])
def test_arguments_that_no_callback_takes_are_an_error(name):
    assert recipes.get(name).callbacks(epochs=3) == []
    with pytest.raises(TypeError, match=rf"'{name}' has no schedule, .* take \['learning_rate', 'seed'\]"):
        recipes.get(name).callbacks(epochs=3, seed=1, learning_rate=0.1)


def test_a_seed_of_a_rule_becomes_one_of_each_layer():
    recipe = Recipe("seeded", (Rule(Stochastic(Ternary(), seed=7), layers="d.*"), Rule(Ternary())))
    seeds = {path: recipe.kernel_quantizer(path, path, "dense").seed for path in ("d0", "d1", "d/0")}
    assert len({7, *seeds.values()}) == 4
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert recipe.kernel_quantizer("d0", "d0", "dense") == Stochastic(Ternary(), seed=seeds["d0"])
    again = recipe.replace(plan=[Rule(Stochastic(Ternary(), seed=8))]).kernel_quantizer("d0", "d0", "dense")
    assert again.seed != seeds["d0"]
    assert recipe.kernel_quantizer("e", "e", "dense") == Ternary()
    assert recipe.replace(plan=[Rule(Stochastic())]).kernel_quantizer("d0", "d0", "dense") == Stochastic()


def test_activations_by_their_bits():
    wide = recipes.get("fat").replace(activations=16)
    assert wide.activations == ActivationRange(16)
    assert Recipe.from_json(wide.to_json()) == wide
    assert recipes.get("int16x8") == dataclasses.replace(
        recipes.get("int8"), name="int16x8", activations=16, source=recipes.get("int16x8").source
    )
    with pytest.raises(ValueError, match="got bits=12"):
        Recipe("mine", (Rule("ternary"),), activations=12)
