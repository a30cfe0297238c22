"""Names and paths: paths never reach for the network, and nobody is left without a way out. No test goes online."""

import json
import socket
import subprocess
import sys

import huggingface_hub
import pytest
from checkpoints.toys import hf_model
from huggingface_hub import constants, errors

import bert_fast
from bert_fast.checkpoints import CheckpointError, CheckpointNotFoundError, resolve


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test, also one whose error would be caught."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield attempts
    assert attempts == []


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def online(monkeypatch):
    """As far as resolve knows; what it would call is replaced in each test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_paths_do_not_touch_the_network(tmp_path, no_network, monkeypatch):
    hf_model("BertModel").save_pretrained(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model").samefile(tmp_path / "org" / "model")
    assert resolve(tmp_path / "org", subfolder="model").samefile(tmp_path / "org" / "model")
    bert_fast.BertModel.from_pretrained("org/model")
    bert_fast.BertModel.from_pretrained(tmp_path / "org" / "model" / "model.safetensors")
    bert_fast.BertModel.from_pretrained("org", subfolder="model")


@pytest.mark.parametrize(
    "name",
    ["./model", "../model", "/no/such/model", "~/no/such", "a/b/c", "a\\b", "model.safetensors", "x/model.bin", "a b"],
)
def test_what_looks_like_a_missing_path_is_said_to_be_one(no_network, name):
    with pytest.raises(CheckpointNotFoundError, match="no such file or directory"):
        resolve(name)


def test_a_missing_path_object_is_never_a_hub_name(tmp_path, no_network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        resolve(tmp_path.__class__("bert-base-uncased"))
    with pytest.raises(CheckpointNotFoundError, match="empty"):
        resolve("")


@pytest.mark.parametrize("subfolder", ["..", "a/../../b", "/etc"])
def test_a_subfolder_lies_inside(tmp_path, no_network, subfolder):
    with pytest.raises(CheckpointError, match="subfolder must lie inside"):
        resolve(tmp_path, subfolder=subfolder)


@pytest.mark.usefixtures("offline")
def test_offline_says_what_to_do(tmp_path, no_network):
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve("google-bert/bert-base-uncased", cache_dir=tmp_path)
    for advice in ("not a path", "cache", "path of a directory", "HF_HUB_OFFLINE", "hf download google-bert/bert-base"):
        assert advice in str(caught.value)


def test_offline_by_environment_in_a_fresh_process(tmp_path):
    code = "import bert_fast; bert_fast.BertModel.from_pretrained('bert-base-uncased')"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "CheckpointNotFoundError: 'bert-base-uncased' is not a path on this machine" in done.stderr


def cached(tmp_path, name="org/model"):
    """The hub's cache with one repository in it; returns the snapshot."""
    repository = tmp_path / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    hf_model("BertModel").save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_local_files_only_takes_the_cached_copy(tmp_path, no_network):
    snapshot = cached(tmp_path)
    assert resolve("org/model", cache_dir=tmp_path, local_files_only=True).samefile(snapshot)
    bert_fast.BertModel.from_pretrained("org/model", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.usefixtures("online")
def test_an_unreachable_hub_falls_back_to_the_cached_copy(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    snapshot = cached(tmp_path)
    assert resolve("org/model", cache_dir=tmp_path).samefile(snapshot)
    with pytest.raises(CheckpointNotFoundError, match="cannot be reached .name resolution failed."):
        resolve("org/other", cache_dir=tmp_path)


class Hub:
    """What resolve asks of the hub, answered from a list of files."""

    def __init__(self, monkeypatch, folder, files):
        self.folder, self.files, self.patterns = folder, files, None
        monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, **options: self.files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def download(self, name, allow_patterns, **options):
        self.patterns = allow_patterns
        return str(self.folder)


@pytest.mark.parametrize(
    ("files", "wanted", "unwanted"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"], "pytorch_model.bin"),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"], "model.safetensors"),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"],
            ["model.safetensors.index.json", "model*-of-*.safetensors"],
            "pytorch_model.bin",
        ),
        (
            ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001", "bert_config.json"],
            ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"],
            "model.safetensors",
        ),
    ],
)
@pytest.mark.usefixtures("online")
def test_only_the_needed_files_are_downloaded(tmp_path, monkeypatch, files, wanted, unwanted):
    hub = Hub(monkeypatch, tmp_path, files)
    assert resolve("org/model") == tmp_path
    assert set(wanted) <= set(hub.patterns)
    assert unwanted not in hub.patterns
    assert "config.json" in hub.patterns


@pytest.mark.usefixtures("online")
def test_a_repository_without_weights(tmp_path, monkeypatch):
    Hub(monkeypatch, tmp_path, ["README.md"])
    with pytest.raises(CheckpointNotFoundError, match=r"'org/model' has none of model\.safetensors"):
        resolve("org/model")


@pytest.mark.usefixtures("online")
def test_an_unknown_repository_and_revision(monkeypatch):
    class Response:
        headers = {}
        request = None
        status_code = 404

    def unknown(*args, **options):
        raise errors.RepositoryNotFoundError("404 Client Error", response=Response())

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unknown)
    with pytest.raises(CheckpointNotFoundError, match="neither a path on this machine nor a repository.*'v9'.*token="):
        resolve("org/model", revision="v9")


def test_json_of_a_cached_config_decides_the_kind(tmp_path, no_network):
    snapshot = cached(tmp_path)
    values = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**values, "model_type": "roberta"}))
    with pytest.raises(CheckpointError, match="'roberta'; supported: 'bert'"):
        bert_fast.BertModel.from_pretrained("org/model", cache_dir=tmp_path, local_files_only=True)
