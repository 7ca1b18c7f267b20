"""Fixtures of the tokenizer tests."""

from pathlib import Path

import pytest
from tokenizers import processors

from tests.unit.tokenizer.families import byte_level_bpe, save, sentencepiece_bpe, unigram, word_piece


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a family -> folder."""
    root = tmp_path_factory.mktemp("tokenizers")
    generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
    chat_tokens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    llama = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    llama3 = byte_level_bpe()
    llama3.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]),
        ]
    )
    return {
        "qwen": save(root / "qwen", byte_level_bpe(), {**generic, **chat_tokens, "add_bos_token": True}),
        "llama3": save(root / "llama3", llama3, {**generic, "bos_token": "<|begin|>", "eos_token": "<|im_end|>"}),
        "llama2": save(root / "llama2", sentencepiece_bpe(), {**generic, **llama, "add_eos_token": True}),
        "gemma": save(root / "gemma", sentencepiece_bpe(prepends=False), {**generic, **llama}),
        "unigram": save(root / "unigram", unigram(), {**generic, "eos_token": "</s>", "unk_token": "<unk>"}),
        "word_piece": save(
            root / "word_piece",
            word_piece(),
            {**generic, "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        ),
    }
