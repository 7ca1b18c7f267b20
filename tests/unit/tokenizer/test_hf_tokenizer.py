import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.unit.tokenizer.families import TEXTS, byte_level_bpe, save, unigram
from vllm_mxext.errors import ConfigError, InvalidRequestError
from vllm_mxext.tokenizer.hf_tokenizer import HfTokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer

FAMILIES = ("qwen", "llama3", "llama2", "gemma", "unigram", "word_piece")
SPECIALS = "<s>a</s> <|im_start|>user\nhi<|im_end|> <tool_call>数 学 [CLS] x[SEP]<|begin|>"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> tuple[HfTokenizer, PreTrainedTokenizerBase]:
    folder = checkpoints[request.param]
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", [*TEXTS, SPECIALS, "", " ", "\n\n", "�", "a\x00b"])
def test_encodes_and_decodes_as_transformers(pair, text):
    ours, theirs = pair
    for add_special_tokens in (True, False):
        ids = ours.encode(text, add_special_tokens=add_special_tokens)
        assert ids == theirs.encode(text, add_special_tokens=add_special_tokens)
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), data=st.data())
def test_any_text_and_any_ids_give_what_transformers_gives(pair, text, data):
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_knows_the_same_special_tokens_as_transformers(pair):
    ours, theirs = pair
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.vocab_size == len(theirs)
    assert set(theirs.all_special_ids) <= ours.special_token_ids


@pytest.mark.parametrize("family", ["qwen", "llama3", "llama2", "gemma"])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_join_to_the_text(checkpoints, family, text):
    tokenizer = load_tokenizer(checkpoints[family])
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert joined == (" " + text if family == "llama2" else text)


def test_partial_characters_show_as_replacement_in_token_text(checkpoints):
    tokenizer = load_tokenizer(checkpoints["llama2"])
    ids = tokenizer.encode("\U0001f9ff", add_special_tokens=False)[-4:]  # not in what the tokenizer was trained on
    assert [tokenizer.token_bytes(token_id) for token_id in ids] == [b"\xf0", b"\x9f", b"\xa7", b"\xbf"]
    assert {tokenizer.token_text(token_id) for token_id in ids} == {"�"}


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40])
def test_decoding_an_unknown_id_is_refused_but_streaming_it_gives_nothing(checkpoints, token_id):
    tokenizer = load_tokenizer(checkpoints["qwen"])
    with pytest.raises(InvalidRequestError, match=str(token_id)):
        tokenizer.decode([5, token_id])
    if 0 <= token_id < 2**32:
        assert tokenizer.detokenizer([]).push([token_id]) == ""


def test_an_unpaired_surrogate_is_an_invalid_request(checkpoints):
    with pytest.raises(InvalidRequestError, match=r"U\+D83D"):
        load_tokenizer(checkpoints["qwen"]).encode("ok \ud83d")


def test_truncation_and_padding_stored_in_the_file_are_not_applied(tmp_path):
    backend = byte_level_bpe()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    ids = load_tokenizer(save(tmp_path, backend, {})).encode("one two three four five six seven")
    assert 4 < len(ids) < 64


def test_tokens_named_only_in_the_configuration_are_added_as_in_transformers(tmp_path):
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eot>",
        "bos_token": {"__type": "AddedToken", "content": "<bot>", "special": True},
        "added_tokens_decoder": {
            "422": {"content": "<a>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False,
                    "special": True},
            "423": {"content": "<b>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False,
                    "special": False},
        },
        "extra_special_tokens": ["<x>", "<y>"],
        "image_token": "<img>",
    }  # fmt: skip
    folder = save(tmp_path, byte_level_bpe(), config)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "hi  <a> <b> <eot><bot><x><y><img>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


def test_special_tokens_map_names_tokens_in_old_checkpoints(tmp_path):
    special = json.dumps({"bos_token": {"content": "<|begin|>", "lstrip": False}, "eos_token": "<|im_end|>"})
    folder = save(
        tmp_path, byte_level_bpe(), {"tokenizer_class": "PreTrainedTokenizerFast"}, special_tokens_map=special
    )
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.bos_token_id == theirs.bos_token_id == 0
    assert ours.eos_token_id == theirs.eos_token_id == 2


def test_spaces_before_punctuation_are_cleaned_up_where_the_configuration_says_so(tmp_path):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    for name, backend in (("unigram", unigram()), ("bpe", byte_level_bpe())):
        folder = save(tmp_path / name, backend, config)
        ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        ids = ours.encode("it is , well . don 't")
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_missing_tokenizer_file_says_how_to_make_it(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is needed.*sentencepiece.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [("tokenizer.json", "{}"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", "[]")]
)
def test_a_malformed_file_is_named(tmp_path, name, text):
    save(tmp_path, byte_level_bpe(), {})
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        load_tokenizer(tmp_path)


def test_loading_imports_neither_transformers_nor_torch(checkpoints):
    code = (
        "import sys; from vllm_mxext.tokenizer.loading import load_tokenizer; "
        f"load_tokenizer({str(checkpoints['qwen'])!r}); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
