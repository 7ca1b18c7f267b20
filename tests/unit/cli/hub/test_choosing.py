"""`mxext hub list-profiles`, `select`, `explain`, `config` and `hardware`."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.hub_servers.model_hub import ModelHub
from tests.unit.cli.hub.conftest import BIG_MACHINE, NAME, Run
from vllm_mxext import builtin
from vllm_mxext.cli.hub import ALIASES, COMMANDS
from vllm_mxext.cli.hub_commands.parsing import add_choice, add_events, command_parser
from vllm_mxext.config.app import parse_serve_args
from vllm_mxext.config.options import all_flags
from vllm_mxext.config.refused import refused_flags
from vllm_mxext.hub.exit_codes import MEANINGS

pytestmark = pytest.mark.promise("HUB-CLI-1")


@pytest.fixture
def big_machine(home: Path) -> Path:
    (home / "big.yaml").write_text(BIG_MACHINE)
    return home / "big.yaml"


def test_without_a_model_all_models_are_listed_with_their_best_profiles(mxext: Run, hub: ModelHub) -> None:
    printed = mxext("list-profiles")
    assert printed.code == 0
    for part in (NAME, "cpu", "runnable", "model_manifest.yaml (environment MIM_MANIFEST_PATH)"):
        assert part in printed.out
    value = mxext("list-profiles", "--json").json
    assert [(model["name"], model["best"]["name"]) for model in value["models"]] == [(NAME, "cpu")]
    assert hub.asked == []


def test_a_model_s_profiles_are_listed_with_their_states(mxext: Run) -> None:
    printed = mxext("list-profiles", "tiny")
    assert printed.code == 0
    assert [line.split()[1] for line in printed.out.splitlines() if line.startswith("*")] == ["cpu"]
    assert "incompatible" in next(line for line in printed.out.splitlines() if " gpu " in line)
    profiles = mxext("list-model-profiles", "tiny", "--json").json["profiles"]
    assert [(one["name"], one["place"]) for one in profiles] == [("cpu", 1), ("cpu-small", 2), ("gpu", None)]


def test_another_machine_s_choice_is_made_from_its_description(mxext: Run, big_machine: Path) -> None:
    assert mxext("select", "tiny", "--json").json["chosen"]["name"] == "cpu"
    value = mxext("select", "tiny", "--hardware", big_machine, "--json").json
    assert (value["chosen"]["name"], value["hardware"]) == ("gpu", "the big one")
    assert "NVIDIA H100" in mxext("hardware", "--hardware", big_machine).out
    assert mxext("hardware", "--json").json["name"] == "this machine"


def test_select_prints_the_command_line_that_serves_the_profile(mxext: Run) -> None:
    printed = mxext("select", "tiny", "--max-model-len", "1k", "--hf-token", "hf_secretsecretsecret")
    assert printed.code == 0
    line = next(line for line in printed.out.splitlines() if line.startswith("command")).partition("mxext serve ")[2]
    assert "hf_secret" not in printed.out
    app = parse_serve_args(shlex.split(line))
    assert (app.model.model, app.hub.model_profile) == ("tiny", "cpu")
    assert (app.model.max_model_len, app.scheduler.max_num_seqs, app.device.device) == (1000, 3, "cpu")
    assert mxext("select", "tiny", "--max-model-len", "1k", "--json").json["command"][2:] == shlex.split(line)


def test_goal_and_profile_are_short_for_the_server_s_flags(mxext: Run) -> None:
    value = mxext("select", "tiny", "--goal", "memory", "--json").json
    assert (value["goal"], value["goal_origin"]) == ("memory", "command line")
    assert mxext("select", "tiny", "--profile", "cpu-small", "--json").json["chosen"]["name"] == "cpu-small"
    assert mxext("select", "tiny", "--profile", "plain", "--json").json["chosen"]["name"] == "cpu"
    assert mxext("select", "tiny", "--goal", "beauty").code == 2


def test_explain_prints_every_rule_and_why_each_profile_lost(mxext: Run, home: Path) -> None:
    printed = mxext("explain", "tiny")
    assert printed.code == 0
    value = mxext("explain", "tiny", "--json").json
    for sentence in (*value["rules"], *(one["why"] for one in value["profiles"])):
        assert sentence in printed.out
    small = "name: a box\nhost: {cores: 1, memory: 1MiB}\n"
    (home / "small.yaml").write_text(small)
    nothing = mxext("explain", "tiny", "--hardware", home / "small.yaml", "--profile", "gpu")
    assert nothing.code == 7
    assert "NVIDIA GPU" in nothing.out


def test_config_prints_every_setting_with_its_origin_before_and_after_a_download(
    mxext: Run, hub: ModelHub, home: Path
) -> None:
    hub.add(NAME, builtin.model_path())
    before = mxext("config", "tiny", "--port", "81", "--json").json
    assert not before["is_stored"]
    assert hub.asked == []
    rows = {row["name"]: row for row in before["settings"]}
    assert (rows["port"]["value"], rows["port"]["origin"]) == ("81", "command line")
    assert (rows["max-num-seqs"]["value"], rows["max-num-seqs"]["origin"]) == ("3", f"profile cpu of {NAME}")
    assert rows["manifest"]["origin"] == "environment MIM_MANIFEST_PATH"
    assert "not stored" in mxext("config", "tiny").out
    assert mxext("pull", "tiny", "--quiet").code == 0
    after = mxext("config", "tiny", "--json").json
    assert after["is_stored"]
    rows = {row["name"]: row for row in after["settings"]}
    assert rows["max-model-len"]["value"] == "2048"
    printed = mxext("config", "tiny", "--hf-token", "hf_secretsecretsecret").out
    assert "hf_secret" not in printed
    assert "******" in printed


def test_a_model_that_no_manifest_has_is_asked_for_at_its_source(mxext: Run, hub: ModelHub, home: Path) -> None:
    hub.add("acme/real", builtin.model_path())
    value = mxext("select", "acme/real", "--json").json
    assert value["chosen"]["tags"]["llm_engine"] == "native"
    assert value["manifest"]["origin"] == "made from hf://acme/real"
    assert not any("/blobs/" in asked.path for asked in hub.cdn.asked if "range" not in asked.headers)
    again = mxext("select", "hf://acme/real", "--json", "--offline")
    assert again.json["chosen"]["id"] == value["chosen"]["id"]
    assert mxext("list-profiles", builtin.model_path()).code == 0


@pytest.mark.parametrize("command", [*COMMANDS, *ALIASES])
def test_every_command_says_what_it_does_and_what_its_exit_codes_mean(
    command: str, mxext: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        mxext(command, "--help")
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"usage: mxext hub {ALIASES.get(command, command)}" in printed
    for code, meaning in MEANINGS:
        assert f"{code:>3}  {meaning}" in printed


def test_an_unknown_command_is_told_with_the_nearest_one(mxext: Run) -> None:
    assert mxext("exlpain", "tiny").err == (
        "mxext: error: There is no command 'mxext hub exlpain'; did you mean explain?\n"
    )


def test_no_flag_of_a_command_hides_one_of_the_server() -> None:
    of_server = {f"--{flag.name}" for flag in all_flags()} | {f"--{name}" for name in refused_flags()}
    parser = command_parser("all", "All flags.")
    add_choice(parser)
    add_events(parser)
    own = {option for action in parser._actions for option in action.option_strings}
    own |= {"--output", "-o", "--keep", "--quick", "--dry-run", "--profiles", "--all", "--model-store"}
    assert own & of_server == set()


def test_the_help_names_every_command(mxext: Run) -> None:
    printed = mxext()
    assert printed.code == 2
    for name, command in COMMANDS.items():
        assert f"{name} " in printed.out
        assert command.summary in printed.out
