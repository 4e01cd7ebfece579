"""transformers' language models in small random configurations (see ``models_zoo.randomise``). Nothing is downloaded.

Each factory returns ``(module in eval mode, (token ids int64 (2, 16),))``; the module maps the ids to one tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UsageError
from models_zoo.randomise import randomise, seeded

__all__ = ["OneTensor", "bert", "bert_mini", "gpt2", "llama"]

Example = tuple[nn.Module, tuple[Tensor, ...]]

VOCABULARY = 500
# The ids of the special tokens must lie within so small a vocabulary.
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class OneTensor(nn.Module):
    """A transformers model as a function from token ids to one tensor: the tracer needs no dictionaries or caches."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, input_ids: Tensor) -> Tensor:
        """``(b, t)`` ids to the model's ``output``: ``(b, t, hidden)`` states or ``(b, t, vocabulary)`` logits."""
        tensor: Tensor = getattr(self.model(input_ids=input_ids), self.output)
        return tensor


def _language(model_class: str, config_class: str, output: str, *, seed: int = 0, **config: Any) -> Example:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(f"The recipe '{model_class}' needs transformers: install graphprune[zoo].") from error
    settings = getattr(transformers, config_class)(**_COMMON, **config)
    module = OneTensor(seeded(lambda: getattr(transformers, model_class)(settings), seed), output)
    # From 1: a padding token (0) would be masked or embedded as zero by some models.
    ids = torch.randint(1, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(seed))
    return randomise(module, seed, (ids,)), (ids,)


def bert() -> Example:
    """BERT encoder (Devlin et al. 2019), 2 layers, 4 heads, hidden 64: ids (2, 16) to states (2, 16, 64)."""
    return _language(
        "BertModel",
        "BertConfig",
        "last_hidden_state",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )


def bert_mini() -> Example:
    """BERT-Mini (Turc et al. 2019), 4 layers, 4 heads, hidden 256: ids (1, 128) to states (1, 128, 256); for timing."""
    module, _ = _language(
        "BertModel",
        "BertConfig",
        "last_hidden_state",
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    return module, (torch.randint(5, VOCABULARY, (1, 128), generator=torch.Generator().manual_seed(0)),)


def gpt2() -> Example:
    """GPT-2 (Radford et al. 2019), 2 layers, 4 heads, hidden 64, tied embeddings: ids to logits (2, 16, 500)."""
    return _language("GPT2LMHeadModel", "GPT2Config", "logits", n_embd=64, n_layer=2, n_head=4, use_cache=False)


def llama() -> Example:
    """Llama (Touvron et al. 2023), 2 layers, 8 query heads over 2 key/value heads: ids to logits (2, 16, 500)."""
    return _language(
        "LlamaForCausalLM",
        "LlamaConfig",
        "logits",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=128,
        use_cache=False,
    )
