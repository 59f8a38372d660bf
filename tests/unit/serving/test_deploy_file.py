from pathlib import Path

import pytest
import yaml

from serving.app import build
from serving.cluster import DeployError, DeployFile
from serving.config import AppSettings

LOCAL = Path("deploy/local.yaml")


def changed(tmp_path, **args):
    config = yaml.safe_load(LOCAL.read_text())
    config["applications"][0]["args"] |= args
    path = tmp_path / "deploy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_deploy_file_of_one_machine_listens_on_loopback_only():
    assert DeployFile.read(LOCAL).http == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("args", "setting"),
    [
        ({"serving": {"max_batch": 0}}, "args.serving.max_batch"),
        ({"serving": {"event_k": 501}}, "serving.event_k: 501 is more than generation.max_k, 500"),
        ({"trainer": {"interval": 60}}, "args.trainer.interval"),
        ({"kafka": {"events": "no spaces"}}, "args.kafka.events"),
        ({"model": {"heads": 3}}, "width: must be a multiple"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_file(tmp_path, args, setting):
    path = changed(tmp_path, **args)
    with pytest.raises(DeployError) as refused:
        DeployFile.read(path)
    assert str(path) in str(refused.value)
    assert setting in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "sftp://ada:secret@host/models",
        "https://secret@host/models",
        "az://models/pinrec?sig=secret",
        "az://models?sig=secret",
        "https://?secret",
        "s3://",
    ],
)
def test_an_address_that_would_show_credentials_is_refused_and_not_repeated(tmp_path, address):
    with pytest.raises(DeployError, match=r"args\.state\.registry_url: ") as refused:
        DeployFile.read(changed(tmp_path, state={"registry_url": address}))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["s3://bucket/models", "s3://bucket", "sftp://host:22/a@b", "file:///srv/models", "memory://a/models"]
)
def test_other_addresses_are_taken(tmp_path, address):
    assert DeployFile.read(changed(tmp_path, state={"registry_url": address})).settings.state.registry_url == address


def test_a_gateway_that_would_hold_queries_where_none_is_refused_is_refused_itself(tmp_path):
    config = yaml.safe_load(LOCAL.read_text())
    (gateway,) = (d for d in config["applications"][0]["deployments"] if d["name"] == "Gateway")
    path = tmp_path / "deploy.yaml"

    def read(max_ongoing_requests):
        gateway["max_ongoing_requests"] = max_ongoing_requests
        path.write_text(yaml.safe_dump(config))
        return DeployFile.read(path)

    with pytest.raises(DeployError, match=r"deployments\.Gateway\.max_ongoing_requests: with 544, .* more than .* 544"):
        read(544)
    file = read(545)
    with pytest.raises(DeployError, match=r"Gateway\.max_ongoing_requests: with 545"):
        file.override(serving={"max_queue": 513})


def test_deployments_that_are_no_list_are_named(tmp_path):
    file = yaml.safe_load(LOCAL.read_text())
    file["applications"][0]["deployments"] = 5
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(DeployError, match="deployments: must be a list"):
        DeployFile.read(path)


def test_what_serve_lets_in_follows_the_queries_that_may_wait(tmp_path):
    settings = AppSettings(state={"root": str(tmp_path)}, serving={"max_queue": 5_000, "max_batch": 10})
    assert build(settings)._bound_deployment.max_ongoing_requests > 5_010


def test_overrides_are_checked_as_the_file_is(tmp_path):
    file = DeployFile.read(changed(tmp_path))
    file.override(kafka={"bootstrap": "127.0.0.1:1"}, trainer={"min_events": 7})
    assert (file.settings.kafka.bootstrap, file.settings.trainer.min_events) == ("127.0.0.1:1", 7)
    assert file.settings.trainer.interval_s == 60, "what the file says otherwise stands"
    with pytest.raises(DeployError, match=r"trainer\.min_events"):
        file.override(trainer={"min_events": 0})
