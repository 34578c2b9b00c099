"""Small models of the libraries that surgery must work on."""

import pytest
import torch
from torch import nn

# torchvision's wheels look for CUDA; where torch has none, its operators are missing and importing it (as timm does)
# fails on the descriptions of these two, which nothing here calls.
try:
    import torchvision  # noqa: F401
except RuntimeError:
    _OPERATORS = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(3, 5, 16)


def vit():
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=2, num_heads=2)
    return model, torch.randn(3, 1, 8, 8)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        use_cache=False, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    return GPT2LMHeadModel(config), torch.randint(0, 40, (3, 6))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config), torch.randint(0, 40, (3, 6))


@pytest.fixture
def make():
    """A model by its name with an input, and a function that calls it and returns a tensor."""
    makers = {"encoder": encoder, "vit": vit, "gpt2": gpt2, "llama": llama}

    def make(name):
        torch.manual_seed(0)
        return makers[name]()

    return make


@pytest.fixture
def run():
    """Call a model; the logits where it returns more."""

    def run(model, x):
        out = model(x)
        return out if isinstance(out, torch.Tensor) else out.logits

    return run
