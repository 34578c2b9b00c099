import gzip
import struct

import numpy as np
import pytest
import torch

from poise.data import has_fashion_mnist, load_fashion_mnist


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 6), ("t10k", 3)):
        images = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        with gzip.open(tmp_path / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes())
        with gzip.open(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 0x801, n) + bytes(range(n)))
        np.save(tmp_path / f"{prefix}.npy", images)
    return tmp_path


def test_images_and_labels_are_read_in_order(folder):
    data = load_fashion_mnist("train", folder=folder)
    assert torch.equal(data.inputs.view(6, 28, 28), torch.from_numpy(np.load(folder / "train.npy")).float())
    assert data.targets.tolist() == list(range(6))
    assert data.inputs.dtype == torch.float32
    assert data.targets.dtype == torch.int64
    assert len(data.input_names) == 784
    assert len(data.target_names) == 10
    first = load_fashion_mnist("train", samples=2, folder=folder)
    assert torch.equal(first.inputs, data.inputs[:2])
    assert len(load_fashion_mnist("test", folder=folder)) == 3
    assert has_fashion_mnist(folder)


def test_bad_input_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load_fashion_mnist(folder=tmp_path / "nowhere")
    assert not has_fashion_mnist(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="part must be 'train' or 'test'"):
        load_fashion_mnist("validation", folder=folder)
    for samples in (0, 7):
        with pytest.raises(ValueError, match="samples must be at"):
            load_fashion_mnist("train", samples=samples, folder=folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">II", 0x801, 3) + b"\0")
    with pytest.raises(ValueError, match="ends after 1 bytes"):
        load_fashion_mnist("test", folder=folder)
    with gzip.open(path, "wb") as file:
        file.write(b"no idx file")
    with pytest.raises(ValueError, match="must be an IDX file"):
        load_fashion_mnist("test", folder=folder)


@pytest.mark.skipif(not has_fashion_mnist(), reason="dataset-fashion-mnist is not installed")
def test_the_installed_data_are_balanced():
    data = load_fashion_mnist("test")
    assert data.targets.bincount().tolist() == [1000] * 10
    assert (data.inputs.min(), data.inputs.max()) == (0, 255)
