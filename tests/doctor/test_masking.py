"""What leaves the machine: secrets and absolute paths do not, ordinary arguments do."""

import json
import os
import sqlite3
from pathlib import Path
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits

import numpy as np
import pytest
import torch

from poise.doctor.masking import MASK, Masking
from poise.doctor.session import Session, Settings

RANDOM = "Zx9Qw3rTy7Lm2Vb8Nc4K"

SECRETS = {
    ("--api-key=sk-abc123",): "--api-key=***",
    ("--api_key", "short1x"): "--api_key ***",
    ("--apiKey", "short1x"): "--apiKey ***",
    ("--wandb_api_key=0123456789abcdef0123456789abcdef01234567",): "--wandb_api_key=***",
    ("--password", "hunter2"): "--password ***",
    ("-password=hunter2",): "-password=***",
    ("db.password=hunter2",): "db.password=***",
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPx",): "AWS_SECRET_ACCESS_KEY=***",
    ("--hf-token", "hf_x"): "--hf-token ***",
    ("--token=abcd",): "--token=***",
    ("--client-secret=a-b-c",): "--client-secret=***",
    ("--credentials", "/etc/me.json"): "--credentials ***",
    ("--api-keys=a1b,c2d",): "--api-keys=***,c2d",
    ("https://bob:hunter2@example.org/data",): "https://***@example.org/data",
    ("--proxy=http://bob@example.org",): "--proxy=http://***@example.org",
    ("https://example.org/data?token=abcd&page=2",): "https://example.org/data?token=***&page=2",
    ("--header", "Authorization: Bearer abc.def-0123"): "--header Authorization: Bearer ***",
    ("Bearer abc.def-0123",): "Bearer ***",
    ("-H", "X-Api-Key: abc"): "-H X-Api-Key: ***",
    ('{"token": "abc", "lr": 3}',): '{"token": "***", "lr": 3}',
    ("ghp_0123456789abcdefghijABCDEFGHIJ012345",): MASK,
    ("--name=AKIAIOSFODNN7EXAMPLE",): f"--name={MASK}",
    ("--x=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w",): f"--x={MASK}",
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----",): MASK,
    ("-p", RANDOM): f"-p {MASK}",
    (f"--name=run-{RANDOM}",): f"--name=run-{MASK}",
}


@pytest.mark.parametrize("args", SECRETS, ids=" ".join)
def test_a_secret_is_masked(args):
    assert " ".join(Masking(args).args) == SECRETS[args]


@pytest.mark.parametrize("args", SECRETS, ids=" ".join)
def test_keep_args_keeps_all(args):
    assert Masking(args, keep_args=True).args == list(args)


ORDINARY = [
    "--data-dir=/long/path/To/ImageNet2012/train_V2/resnet50-v1-5-imagenet1k-224x224-b32-lr3e4",
    "--model=meta-llama-3-8b-instruct",
    "--model meta-llama/Llama-3.2-11B-Vision-Instruct",
    "--model timm/vit_base_patch16_clip_224.openai_ft_in12k_in1k",
    "--max-tokens=512",
    "--num-tokens 1e9",
    "--token-dim=64",
    "--tokenizer gpt2",
    "--net ResNet50Backbone2Classifier",
    "--dataset=LongRangeArenaListOps2048Tokens",
    "--pad-token=<pad>",
    "--eos_token </s>",
    "--sort-key loss",
    "--key-dim 64",
    "--use-auth-token=True",
    "--key 5",
    "--feature-keys=age,sex",
    "--commit=5f2c8e9d3b1a7f6e4c0d9b8a7f6e5d4c3b2a1f0e",
    "--revision 5f2c8e9d3b1a7f6e4c0d9b8a7f6e5d4c3b2a1f0e",
    "--sha256=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "--run-id=123e4567-e89b-12d3-a456-426614174000",
    "--betas 0.9,0.999",
    "--lr=3e-4",
    "lr=0.1 model.depth=12",
    "--resume=checkpoints/epoch=12-step=24000.ckpt",
    "--url=https://example.org:8080/a/b?page=2",
    "--name=lr0.0003_bs256_wd0.1_seed3_2024-05-17T12:30:00",
    "--attention=scaled_dot_product_attention_with_rotary_embeddings",
    "--passes=3",
    "--author=me",
    "--keyframes=9",
]


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_arguments_are_recorded_as_they_are(line):
    assert " ".join(Masking(line.split(" ")).args) == line


def test_a_commit_without_a_name_is_taken_for_a_key():
    # Keys of a well-known service look the same: 40 hexadecimal digits.
    assert Masking(["5f2c8e9d3b1a7f6e4c0d9b8a7f6e5d4c3b2a1f0e"]).args == [MASK]


@pytest.mark.parametrize("length", [20, 32, 43, 64])
@pytest.mark.parametrize(
    "alphabet", ["0123456789abcdef", ascii_lowercase + digits, ascii_uppercase + digits, ascii_letters + digits]
)
def test_more_than_nine_in_ten_random_values_are_found(alphabet, length):
    generator = np.random.default_rng(length)
    values = ["".join(generator.choice(list(alphabet), length)) for _ in range(500)]
    assert np.mean([Masking([f"--x={value}"]).args == [f"--x={MASK}"] for value in values]) >= 0.9


def test_sentences_are_not_torn_apart():
    for text in (
        "KeyError: 'layers.0.weight'",
        "missing key: layers.0.weight",
        "forward pass: done in 3 ms",
        "Basic training is over",
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
        "unexpected token: 'end of line'",
    ):
        assert Masking().text(text) == text


def test_what_was_masked_in_an_argument_is_masked_elsewhere():
    masking = Masking(["--password", "hunter-two-three"])
    assert masking.text("ConnectionError: hunter-two-three was refused") == f"ConnectionError: {MASK} was refused"
    assert masking.args == ["--password", MASK]
    assert Masking(["--lr", "3"]).args == ["--lr", "3"]


def test_paths_are_relative_to_the_working_directory_and_to_home(tmp_path, monkeypatch):
    home, here = tmp_path / "home" / "alice", tmp_path / "home" / "alice" / "my project"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    text = Masking().text
    assert text(f"{here}/sub/train.py:12") == "sub/train.py:12"
    assert text(f"--data={here}/data") == "--data=data"
    assert text(f"at {here}: no") == "at .: no"
    assert text(str(here)) == "."
    assert text(f"{home}/other/model.py:3 and {home}") == "~/other/model.py:3 and ~"
    assert text(f"file://{home}/other") == "file://~/other"
    assert text(f"{here}2/train.py") == "~/my project2/train.py"
    assert text(f"/mnt{here}/train.py") == f"/mnt{here}/train.py"
    assert text("/usr/lib/python3/site.py:3") == "/usr/lib/python3/site.py:3"
    assert Masking().tree({"a": [f"{here}/x.py:1", 3, None], "b": {"c": f"{home}"}}) == {
        "a": ["x.py:1", 3, None],
        "b": {"c": "~"},
    }
    monkeypatch.chdir("/")
    assert Masking().text("/usr/lib/python3/site.py:3") == "/usr/lib/python3/site.py:3"


def everything_in(folder: Path) -> str:
    """Return all that the files of a folder say, and what their names are."""
    return "\n".join(str(p) + p.read_bytes().decode(errors="replace") for p in folder.rglob("*") if p.is_file())


def test_a_run_that_is_forwarded_holds_no_secret_and_no_path(tmp_path, monkeypatch):
    home, here = tmp_path / "alice", tmp_path / "alice" / "project"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    args = ["--api-key=sk-thekey1", "--password", "hunter-two-three", "--name", RANDOM, f"--data={here}/data"]
    masking = Masking(args)
    meta = {"script": f"{here}/train.py", "args": masking.args}
    session = Session(Path("run"), Settings(meta=meta, masking=masking)).start()
    # As a finding would: the place in the code where a value was first not finite.
    session.tap.state.sink.event(
        0, "nonfinite_forward", {"op": "log", "source": f"{home}/lib/loss.py:7", "where": "loss"}
    )
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    session.finish("exception", f"OSError: https://bob:letmein9@db/{here}/x refused hunter-two-three in {here}/a.py")
    text_of_files = everything_in(Path("run"))
    for text in ("sk-thekey1", "hunter-two-three", "letmein9", RANDOM, "alice", str(tmp_path)):
        assert text not in text_of_files.replace(str(here), ""), text
    assert "~/lib/loss.py:7" in text_of_files
    assert json.dumps(["--api-key=***", "--password", "***", "--name", "***", "--data=data"]) in text_of_files
    with sqlite3.connect("run/run.db") as database:
        assert database.execute("SELECT value FROM meta WHERE key = 'script'").fetchone() == ('"train.py"',)
    assert os.listdir(here) == ["run"]
