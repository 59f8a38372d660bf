"""`pinrec models` without a running application: on the registry of the deploy file."""

from pathlib import Path

import pytest

from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from serving.cli import app, main
from serving.terminal import console
from tests.small_bundle import small_bundle, small_items
from tests.unit.serving.test_cli import CLOSED, DEPLOY, refusal

UNLIKE = Refusal(check="item_share", figure=1.0, bound=0.9, message="item-3 is in the lists of 40 of 40 users")


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


@pytest.fixture
def deploy(tmp_path):
    """A deploy file whose application does not run."""
    file = tmp_path / "deploy.yaml"
    text = DEPLOY.read_text().replace("port: 8000", "port: 1").replace("root: .pinrec", f"root: {tmp_path / 'state'}")
    file.write_text(text)
    return file


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "state" / "models")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(lambda: app(list(arguments), standalone_mode=False))
    shown = " ".join(capsys.readouterr().out.split())
    assert "no application answers; this is" in shown
    return shown


def test_list_shows_states_and_why(registry, bundle, deploy: Path, capsys, monkeypatch):
    monkeypatch.setattr(console, "_width", 250)
    for _ in range(2):
        registry.publish(bundle)
    registry.refuse([UNLIKE], registry.publish(bundle, activate=False))
    registry.write_outcomes(
        b'{"positions": {}, "versions": {"v000002": '
        b'{"lists": 4, "impressions": 40, "engaged": 3, "nn": 400, "en": 30, "ee": 3}}}'
    )
    shown = said(capsys, "models", "list", "--deploy", str(deploy))
    assert "item_share: item-3 is in the lists of 40 of 40 users (1, bound 0.9)" in shown
    rows = {row.split()[0]: row for row in shown.split("│ ") if row.startswith("v00")}
    assert list(rows) == ["v000003", "v000002", "v000001"]
    for word in ("refused", "current", "passed", "7.50%"):
        assert word in shown


def test_list_shows_what_both_versions_predicted_before_either_was_trained_on_it(
    registry, bundle, deploy: Path, capsys, monkeypatch
):
    monkeypatch.setattr(console, "_width", 250)
    metrics = {"recall@10": 0.1234, "candidate_recall@10": 0.2345, "recall@10_popularity": 0.0567}
    registry.publish(bundle.measured(metrics))
    shown = said(capsys, "models", "list", "--deploy", str(deploy))
    (row,) = (row for row in shown.split("│ v")[1:])
    assert [cell.strip() for cell in row.split("│")][:6] == ["000001", "current", "40", "0.123", "0.234", "0.057"]


def test_activate_and_rollback(registry, bundle, deploy: Path, capsys):
    for _ in range(3):
        registry.publish(bundle)
    assert "v000002 is" in said(capsys, "models", "rollback", "--reason", "wrong prices", "--deploy", str(deploy))
    assert registry.current() == "v000002"
    assert registry.verdict("v000003").reason == "operator: wrong prices"
    refused = refusal(capsys, "models", "activate", "v000003", "--deploy", str(deploy))
    assert "v000003 was withdrawn (operator: wrong prices)" in refused
    said(capsys, "models", "activate", "v000003", "--force", "--deploy", str(deploy))
    assert registry.current() == "v000003"
    said(capsys, "models", "activate", "v000001", "--deploy", str(deploy))
    assert "holds no version older than v000001" in refusal(capsys, "models", "rollback", "--deploy", str(deploy))


def test_a_pinned_version_wins(registry, bundle, deploy: Path, capsys):
    for _ in range(2):
        registry.publish(bundle)
    deploy.write_text(deploy.read_text().replace("    args:\n", "    args:\n      pinned_version: v000001\n"))
    for command in (["activate", "v000001"], ["rollback"]):
        assert "pins a version" in refusal(capsys, "models", *command, "--deploy", str(deploy))
    assert registry.current() == "v000002"


def test_an_address_that_is_named_must_answer(deploy: Path, capsys):
    assert "is `pinrec up` running?" in refusal(
        capsys, "models", "list", "--url", f"http://{CLOSED}", "--deploy", str(deploy)
    )
