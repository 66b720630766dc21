"""What users are given to write a policies file with: the schema and the example."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from guardwire_server.core.errors import StartupError
from guardwire_server.core.policy import BUILT_IN_POLICIES, Action
from guardwire_server.core.verdict import Category
from guardwire_server.policy_file import AssistantRules, PolicyRules, load_policies, main, schema

DEPLOY = Path(__file__).parents[2] / "deploy"
SCHEMA, EXAMPLE = DEPLOY / "policies.schema.json", DEPLOY / "policies.example.yaml"


def test_the_schema_in_deploy_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schema"]) == 0
    command = "python -m guardwire_server.policy_file --schema > deploy/policies.schema.json"
    assert capsys.readouterr().out == SCHEMA.read_text(), f"make it anew: {command}"
    Draft202012Validator.check_schema(schema())


def test_the_example_loads_and_keeps_to_the_schema() -> None:
    example = load_policies(EXAMPLE).value
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(yaml.safe_load(EXAMPLE.read_text()))
    for policy in BUILT_IN_POLICIES:  # it says that it spells them out
        assert example.policies[policy.name] == policy
    assert EXAMPLE.read_text().startswith(f"# yaml-language-server: $schema={SCHEMA.name}\n")


def test_what_the_example_says_in_comments_is_so(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    lines = ["    #   on_error: allow\n", "    #   allow_unjudged: true\n"]
    for line in lines:
        assert line in text
        text = text.replace(line, line.replace("#   ", ""))
    text = text.replace("    on_error: flag\n", "").replace("      # controversial: flag", "      controversial: flag")
    path = tmp_path / "policies.yaml"
    path.write_text(text)
    policies = load_policies(path).value.policies
    assert policies["reviewed"].on_error is Action.ALLOW
    assert policies["default"].user.controversial is Action.FLAG


def test_the_examples_of_the_document_are_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (DEPLOY / "POLICIES.md").read_text()
    good, bad = re.findall(r"^```yaml\n(.*?)^```", document, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    path = Path("policies.yaml")
    path.write_text(good)
    assert list(load_policies(path).value.policies) == ["default", "cautious"]
    path.write_text(bad)
    with pytest.raises(StartupError) as raised:
        load_policies(path)
    assert f"\n```\n{raised.value.message}\n```\n" in document


def test_the_document_names_every_key_and_category() -> None:
    document = (DEPLOY / "POLICIES.md").read_text()
    keys = {name for table in re.findall(r"^\| (`.*?) \|", document, re.M) for name in re.findall(r"`([\w.]+)`", table)}
    turns = {f"{turn}.{key}" for turn in ("user", "assistant") for key in AssistantRules.model_fields}
    assert keys == set(PolicyRules.model_fields) - {"user", "assistant"} | turns
    for category in Category:
        assert f"`{category.name.lower()}`" in document
