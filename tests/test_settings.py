"""Settings as tables: what they may hold, what is missing in them, and that they give the same networks again."""

import contextlib
import copy
import inspect
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tomli_w
from hostile import mutations
from hypothesis import given, strategies as st

import minigan as mg
from minigan import presets, settings, train
from minigan.errors import ConfigError
from minigan.loop import Plan

NETWORKS = {
    "generator": {"model": "mlp_generator", "latent": 4, "hidden": [8], "shape": [3]},
    "discriminator": {"model": "mlp_discriminator", "hidden": [8]},
}


def test_what_is_not_given_is_the_default() -> None:
    whole = settings.check(NETWORKS)
    generator = mg.models.mlp_generator(4, (8,), (3,))
    gan = mg.GAN(generator, mg.models.mlp_discriminator((3,), (8,)))
    own = {key: value for key, value in whole.items() if key not in ("training", "data")}
    assert settings.plain(own) == gan.config()
    assert settings.check(whole) == whole == settings.check(settings.plain(whole))
    assert "data" in whole and whole["data"] == {}


def test_defaults_are_those_of_the_functions() -> None:
    fit = inspect.signature(mg.GAN.fit).parameters
    for name, value in settings.check(NETWORKS)["training"].items():
        assert name == "first_step" or fit[name].default == value, name
    assert set(settings.check(NETWORKS)["training"]) == set(Plan._fields)
    known = set(inspect.signature(mg.GAN).parameters) - {"device"}  # on which a run may change
    assert set(settings.check(NETWORKS)) == known | {"training", "data"}
    read = inspect.signature(mg.data.read).parameters
    assert set(presets.SOURCE) == set(read)


def test_seeds_shapes_and_steps_follow() -> None:
    curve = {"name": "linear", "lr": 0.1}
    config = {**NETWORKS, "seed": 5, "training": {"steps": 70}, "noise": curve}
    config["optimizer"] = {"name": "SGD", "lr": curve}
    whole = settings.check(config)
    assert whole["generator"]["seed"] == whole["discriminator"]["seed"] == 5
    assert whole["discriminator"]["shape"] == [3]
    assert whole["optimizer"] == whole["discriminator_optimizer"]
    assert whole["optimizer"]["lr"] == whole["noise"] == {**curve, "steps": 70, "begin": 0.0, "end": 0.0}
    config["generator"] = {"model": "mlp_generator", "seed": 6}
    config["discriminator"] = {"model": "mlp_discriminator"}
    whole = settings.check(config, shape=(2, 2, 1))
    assert [whole[who]["shape"] for who in presets.PLAYERS] == [[2, 2, 1]] * 2
    assert [whole[who]["seed"] for who in presets.PLAYERS] == [6, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sead": 1},
            r"the configuration has no key 'sead'; did you mean 'seed'\? there are seed, latent, loss",
        ),
        ({"xyz": 1}, "the configuration has no key 'xyz'; there are seed"),
        ({"generator.hiden": [1]}, r"\[generator\] has no key 'hiden'; did you mean 'hidden'\?"),
        ({"discriminator.output": "none"}, r"\[discriminator\] has no key 'output'; .*slope"),
        (
            {"optimizer": {"name": "Adam", "lrate": 1}},
            r"\[optimizer\] has no key 'lrate'; did you mean 'lr'\?",
        ),
        (
            {"discriminator_optimizer": {"name": "SGD", "lr": 1.0, "momentun": 1}},
            r"\[discriminator_optimizer\] has no key 'momentun'; did you mean 'momentum'\?",
        ),
        (
            {"optimizer": {"name": "Adam", "lr": {"name": "linear", "lr": 1, "start": 0.5}}},
            r"\[optimizer.lr\] has no key 'start'.* there are name, lr, steps, begin",
        ),
        (
            {"noise": {"name": "linear", "lr": 1, "step": 1}},
            r"\[noise\] has no key 'step'; did you mean 'steps'",
        ),
        (
            {"penalty": [{"name": "r1", "weigth": 1}]},
            r"\[penalty 1\] has no key 'weigth'; did you mean 'weight'",
        ),
        (
            {"penalty": [{"name": "r1", "weight": 1.0}, {"name": "dragan", "scales": 1}]},
            r"\[penalty 2\] has no key 'scales'; did you mean 'scale'",
        ),
        ({"training": {"save_evry": 1}}, r"\[training\] has no key 'save_evry'; did you mean 'save_every'\?"),
        ({"data": {"sorce": "x"}}, r"\[data\] has no key 'sorce'; did you mean 'source'\?"),
    ],
)
def test_unknown_keys_name_the_nearest(change: dict[str, Any], message: str) -> None:
    with pytest.raises(mg.ConfigError, match=message):
        settings.check(changed(change))


def changed(change: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = copy.deepcopy(NETWORKS)
    for names, value in change.items():
        *tables, last = names.split(".")
        table = config
        for name in tables:
            table = table[name]
        table[last] = value
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": True}, "seed is True: expected an integer"),
        ({"seed": 1.0}, "seed is 1.0: expected an integer"),
        ({"seed": 10**30}, "'seed' is an integer of 100 bits: expected up to 64"),
        ({"seed": 10**5000}, "'seed' is an integer of 16610 bits"),
        ({"d_steps": "2"}, "d_steps is '2': expected an integer"),
        ({"share_fake": 1}, "share_fake is 1: expected true or false"),
        ({"smoothing": math.nan}, "smoothing is nan: expected a finite number"),
        ({"ema": "off"}, "ema is 'off': expected a finite number or \"none\""),
        ({"noise": "loud"}, "noise is 'loud': expected a finite number or a table of a schedule"),
        (
            {"noise": {"lr": 1.0}},
            r"\[noise\] is .*: expected a table with 'name', one of constant, linear, cosine",
        ),
        ({"loss": "hinges"}, "loss 'hinges' does not exist; there are minimax, non_saturating"),
        ({"loss": ["hinge"]}, r"loss \['hinge'\] does not exist"),
        ({"latent": "cauchy"}, "latent 'cauchy' does not exist; there are uniform, normal"),
        ({"update": "x"}, "update 'x' does not exist; there are alternating, simultaneous"),
        ({"generator": 3}, "generator is 3: expected a table"),
        ({"generator": {}}, r"\[generator\] is {}: expected a table with 'model', one of mlp_generator"),
        (
            {"generator": {"model": "os.system"}},
            r"\[generator\] model 'os.system' does not exist; there are mlp_gen",
        ),
        ({"discriminator.model": "mlp_generator"}, r"\[discriminator\] model 'mlp_generator' does not exist"),
        (
            {"generator.init": "eval"},
            r"\[generator\] initialiser 'eval' does not exist; there are glorot_uniform",
        ),
        (
            {"generator.dtype": "float16"},
            r"\[generator\] dtype 'float16' does not exist; there are float32, float64",
        ),
        ({"generator.hidden": 8}, r"\[generator\] hidden is 8: expected a list of up to 63 integers"),
        ({"generator.hidden": [8, 0.5]}, "hidden is .*: expected a list"),
        ({"generator.hidden": [1] * 64}, "hidden is .*: expected a list of up to 63"),
        ({"generator.slope": "steep"}, r"\[generator\] slope is 'steep': expected a finite number"),
        (
            {"optimizer": {"name": "Adma"}},
            r"\[optimizer\] optimizer 'Adma' does not exist; there are SGD, RMSProp",
        ),
        ({"optimizer": {"name": "SGD"}}, r"\[optimizer\] needs 'lr'"),
        (
            {"optimizer": {"name": "Adam", "lr": math.inf}},
            r"\[optimizer\] lr is inf: expected a finite number",
        ),
        ({"optimizer": {"name": "Adam", "lr": 10**400}}, "'lr' is an integer of 1329 bits"),
        (
            {"optimizer": {"name": "Adam", "lr": {"name": "custom"}}},
            r"\[optimizer.lr\] schedule 'custom' does not",
        ),
        ({"penalty": 1}, "penalty is 1: expected a list of tables"),
        ({"penalty": [1]}, r"\[penalty 1\] is 1: expected a table with 'name', one of r1"),
        ({"penalty": [{"name": "r9"}]}, r"\[penalty 1\] penalty 'r9' does not exist; there are r1, r2"),
        ({"penalty": [{"name": "r1"}]}, r"\[penalty 1\] needs 'weight'"),
        ({"training": {"steps": "100"}}, r"\[training\] steps is '100': expected an integer"),
        (
            {"training": {"on_nonfinite": "x"}},
            "on_nonfinite 'x' does not exist; there are stop, skip, rollback",
        ),
        ({"training": [1]}, r"\[training\] is \[1\]: expected a table"),
        ({"data": {"size": "big"}}, r"\[data\] size is 'big': expected an integer or \"none\""),
        (
            {"data": {"source": [[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]}},
            "'source' is within 21 tables or lists",
        ),
    ],
)
def test_wrong_values_say_what_is_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(mg.ConfigError, match=message):
        settings.check(changed(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"name": "Adam", "lr": -1.0}}, "Adam: lr is -1.0"),
        ({"noise": {"name": "linear", "lr": -1.0}}, "linear: lr is -1.0"),
        ({"penalty": {"name": "r1", "weight": -1}}, "r1: weight -1.0 is not a finite number from 0"),
        ({"generator.hidden": [0]}, "every size must be at least 1"),
        ({"generator.output": "softmax"}, "no function 'softmax'"),
        ({"discriminator.shape": [4]}, "the generator makes samples of"),
    ],
)
def test_ranges_are_those_of_the_things_themselves(change: dict[str, Any], message: str) -> None:
    with pytest.raises(mg.ConfigError, match=message):
        train.build(settings.check(changed(change)))


def test_networks_are_needed() -> None:
    with pytest.raises(mg.ConfigError, match=r"the configuration needs \[discriminator\]"):
        settings.check({"generator": NETWORKS["generator"]})


GANS: list[dict[str, Any]] = [
    {"ema": None},
    {"noise": 0.25},
    {"noise": mg.optim.cosine(0.1, 50), "seed": 2**63 - 1},
    {"optimizer": mg.optim.Adam(mg.optim.linear(1e-3, 100, begin=0.5), clip_norm=1.0)},
    {"optimizer": mg.optim.RMSProp(1e-3), "discriminator_optimizer": mg.optim.SGD(0.1, momentum=0.5)},
    {"penalty": (mg.penalties.r1(0.1), mg.penalties.dragan(2.0, scale=0.25)), "d_steps": 2},
    {"loss": "hinge", "update": "simultaneous", "share_fake": True},
    {"loss": "minimax", "smoothing": 0.1, "latent": "normal"},
]


@pytest.mark.parametrize("arguments", GANS, ids=lambda arguments: "-".join(arguments))
@pytest.mark.parametrize("output", [None, "tanh"])
def test_a_gan_comes_back_from_toml_and_from_json(arguments: dict[str, Any], output: str | None) -> None:
    generator = mg.models.mlp_generator(
        4, (8,), (3,), output=output, init=mg.nn.init.he_normal, dtype=np.float64
    )
    gan = mg.GAN(generator, mg.models.mlp_discriminator((3,), (8,), seed=1, dtype=np.float64), **arguments)
    config = gan.config()
    for written in (tomllib.loads(tomli_w.dumps(config)), json.loads(json.dumps(config))):
        again = train.build(settings.check(written))
        assert again.config() == train.build(written).config() == config
        assert again.ema == gan.ema
        state, other = gan.game.state(), again.game.state()
        assert state.keys() == other.keys()
        assert all(np.array_equal(state[name], other[name]) for name in state)
        assert np.array_equal(again.sample(3), gan.sample(3))


def test_rates() -> None:
    for rate in (0.5, mg.optim.cosine(0.1, 50, begin=0.25), mg.optim.constant(0.5)):
        again = settings.build_rate(settings.describe_rate(rate))
        assert again == rate if isinstance(rate, float) else vars(again) == vars(rate)
    own = settings.describe_rate(lambda step: 0.1)
    assert own["name"] == "custom" and "lambda" in own["repr"]
    optimizer = settings.plain(settings.describe_optimizer(mg.optim.SGD(lambda step: 0.1)))
    with pytest.raises(
        mg.ConfigError, match="schedule 'custom' does not exist; there are constant, linear, cosine"
    ):
        settings.build_optimizer(optimizer)


def test_what_the_first_files_left_out_is_off() -> None:
    generator = mg.models.mlp_generator(4, (8,), (3,), output=None)
    gan = mg.GAN(generator, mg.models.mlp_discriminator((3,), (8,)), ema=None)
    config = {key: value for key, value in gan.config().items() if key != "ema"}
    config["generator"] = {key: value for key, value in config["generator"].items() if key != "output"}
    assert train.build(config).config() == gan.config()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": [10**9, 10**9]},
        {"latent": 2**62, "hidden": []},
        {"shape": [2**31, 2**31]},
        {"hidden": [10**6]},
        {"hidden": [8, 8]},
    ],
    ids=str,
)
def test_larger_networks_than_a_file_holds_are_refused_before_they_are_made(change: dict[str, Any]) -> None:
    config = settings.check(NETWORKS)["generator"]
    weights = 4 * 8 + 8 * 3
    assert settings.build_network(config, weights).count() == weights + 8 + 3
    with pytest.raises(mg.ConfigError, match=f"has more weights than {weights}: layer of shape"):
        settings.build_network(config | change, weights)


def test_merging() -> None:
    base = {"a": 1, "t": {"x": 1, "y": {"z": 2, "w": 3}}, "list": [1, 2]}
    merged = settings.merge(base, {"t": {"y": {"z": 5}}, "list": [3], "b": {}})
    assert merged == {"a": 1, "t": {"x": 1, "y": {"z": 5, "w": 3}}, "list": [3], "b": {}}
    assert base["t"] == {"x": 1, "y": {"z": 2, "w": 3}}
    adam = {"optimizer": {"name": "Adam", "b1": 0.5}}
    assert settings.merge(adam, {"optimizer": {"name": "SGD", "lr": 1}}) == {
        "optimizer": {"name": "SGD", "lr": 1}
    }
    assert settings.merge(adam, {"optimizer": 3}) == {"optimizer": 3}


def test_plain_values() -> None:
    given = {"a": np.float32(0.5), "b": (np.int64(3), [None]), "c": np.arange(2), "d": "caf\udce9", "e": None}
    assert settings.plain(given) == {
        "a": 0.5,
        "b": [3, ["none"]],
        "c": [0, 1],
        "d": "caf\\udce9",
        "e": "none",
    }
    with pytest.raises(mg.ConfigError, match="'seed' is an integer of 64 bits"):
        settings.plain({"seed": 2**63})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.settings(deadline=None)
@given(st.sampled_from(sorted(settings.check(NETWORKS))), JSON)
def test_any_value_anywhere_works_or_is_refused(key: str, value: Any) -> None:
    whole = settings.check(NETWORKS)
    tables = [{**whole, key: value}]
    if isinstance(whole[key], dict):
        tables += [{**whole, key: {**whole[key], inner: value}} for inner in whole[key]]
    for table in tables:
        try:
            checked = settings.check(table)
        except mg.ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
        else:
            assert settings.check(settings.plain(checked)) == checked


# Presets


def test_presets_are_whole_and_can_be_built() -> None:
    for name in presets.PRESETS:
        config = presets.config(name)
        assert settings.check(settings.plain(config)) == config
        train.build(config)
        assert config["optimizer"]["lr"]["steps"] == config["training"]["steps"]
    with pytest.raises(
        mg.ConfigError, match="preset 'mnst' does not exist; there are digits, mnist, fashion"
    ):
        presets.config("mnst")


def test_the_preset_of_the_digits_is_the_one_of_the_pinned_run() -> None:
    config = presets.config("digits", seed=3)
    gan = mg.GAN(
        mg.models.mlp_generator(100, (128, 128), (8, 8, 1), seed=3),
        mg.models.mlp_discriminator((8, 8, 1), (128, 128), seed=3),
        penalty=mg.penalties.r1(0.1),
        optimizer=mg.optim.Adam(mg.optim.linear(3e-3, 6000, begin=0.5), b1=0.5),
        seed=3,
    )
    assert train.build(config).config() == gan.config()
    assert (config["training"]["batch"], config["data"]) == (64, {"source": "digits"})


def test_changes_reach_what_follows_them() -> None:
    config = presets.config("digits", training={"steps": 90, "batch": 7}, seed=4, lr=0.5)
    assert (config["training"]["steps"], config["training"]["batch"]) == (90, 7)
    for who in ("optimizer", "discriminator_optimizer"):
        assert config[who]["lr"] == {"name": "linear", "lr": 0.5, "steps": 90, "begin": 0.5, "end": 0.0}
    assert config["seed"] == config["generator"]["seed"] == config["discriminator"]["seed"] == 4
    again = presets.adjusted(config, training={"steps": 50}, seed=0)
    assert again["optimizer"]["lr"]["steps"] == 50 and again["generator"]["seed"] == 0
    own = settings.merge(config, {"generator": {"seed": 9}, "optimizer": {"lr": {"steps": 1000}}})
    again = presets.adjusted(own, training={"steps": 50}, seed=1)
    assert again["generator"]["seed"] == 9 and again["discriminator"]["seed"] == 1
    assert again["optimizer"]["lr"]["steps"] == 1000 and again["discriminator_optimizer"]["lr"]["steps"] == 50
    plain = settings.merge(presets.table("digits"), {"optimizer": {"lr": 0.1}})
    assert presets.adjusted(plain, lr=0.25)["discriminator_optimizer"]["lr"] == 0.25


def test_shapes_follow_other_data() -> None:
    def shapes(*arguments: Any, **changes: Any) -> list[Any]:
        config = presets.adjusted(*arguments, **changes, shape=(5, 5, 3))
        return [config[who]["shape"] for who in presets.PLAYERS]

    assert shapes(presets.table("images")) == [[5, 5, 3]] * 2
    assert shapes(presets.table("mnist")) == [[28, 28, 1]] * 2
    assert shapes(presets.table("mnist"), data={"data_dir": "x"}) == [[28, 28, 1]] * 2
    assert shapes(presets.table("mnist"), data={"source": "x"}) == [[5, 5, 3]] * 2
    known = {"source": "a", "data_dir": "b", "shape": [9], "dtype": "uint8", "sha256": "c"}
    table = settings.merge(presets.table("images"), {"data": known})
    assert presets.adjusted(table, data={"data_dir": "d"})["data"] == known | {"data_dir": "d"}
    assert presets.adjusted(table, data={"source": "e"})["data"] == {"source": "e", "data_dir": "b"}


def test_files_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "digits"\nema = "none"\n[training]\nsteps = 40\n[generator]\nhidden = [16]\n')
    config = presets.adjusted(presets.read(str(path)))
    assert config["ema"] is None and config["optimizer"]["lr"]["steps"] == 40
    assert config["generator"]["hidden"] == [16] and config["discriminator"]["hidden"] == [128, 128]
    (tmp_path / "config.toml").write_text(tomli_w.dumps(settings.plain(config)))
    assert presets.adjusted(presets.read(str(tmp_path))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = [\n", "run.toml: is no TOML: "),
        ("a = " + "[" * 5000, "run.toml: is no TOML: "),
        ("a = " + "9" * 5000, "run.toml: is no TOML: "),
        ("\xff", "run.toml: is no TOML: "),
        ('preset = "digit"', "run.toml: preset 'digit' does not exist; there are digits"),
        ("preset = 3", "run.toml: preset 3 does not exist"),
        ('preset = "digits"\nema = 2000-01-01\n', r"run.toml: ema is datetime.date\(2000, 1, 1\): expected"),
        (
            'preset = "digits"\n[optimizer]\nlrate = 1\n',
            r"run.toml: \[optimizer\] has no key 'lrate'; did you mean",
        ),
        ('preset = "digits"\ngenerator = 1\n', "run.toml: generator is 1: expected a table"),
        ("seed = 1", r"run.toml: the configuration needs \[generator\]"),
    ],
)
def test_wrong_files_of_settings(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(mg.ConfigError, match=message):
        presets.read(str(path))
    with pytest.raises(mg.ConfigError, match=r"none\.toml: there is no such file"):
        presets.read(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("count", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_damaged_files_of_settings(count: int, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for data in mutations(tomli_w.dumps(settings.plain(presets.config("digits"))).encode(), count, seed=0):
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            presets.adjusted(presets.read(str(path)))
