import codecs
from itertools import chain, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.tokenizer.families import TEXTS
from vllm_mxext.tokenizer.hf_tokenizer import HfTokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer

SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FAMILIES = ("qwen", "llama3", "llama2", "gemma", "unigram", "word_piece")


@pytest.fixture(scope="module")
def tokenizers(checkpoints) -> dict[str, HfTokenizer]:
    return {name: load_tokenizer(folder) for name, folder in checkpoints.items()}


def stream(tokenizer: HfTokenizer, prompt: list[int], output: list[int], cuts: list[int], **options: bool) -> str:
    detokenizer = tokenizer.detokenizer(prompt, **options)
    ends = [0, *sorted(cut for cut in cuts if cut < len(output)), len(output)]
    pushed = [detokenizer.push(output[start:end]) for start, end in pairwise(ends)]
    return "".join(pushed) + detokenizer.flush()


def ids(tokenizer: HfTokenizer) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=24)


CUTS = st.lists(st.integers(1, 23), max_size=8)


@SETTINGS
@given(data=st.data(), cuts=CUTS, skip=st.booleans())
@pytest.mark.parametrize("family", ["qwen", "llama3"])
def test_byte_level_output_is_what_it_adds_to_the_finished_text_of_the_prompt(tokenizers, family, data, cuts, skip):
    tokenizer = tokenizers[family]
    prompt, output = data.draw(ids(tokenizer)), data.draw(ids(tokenizer))
    skipped = tokenizer.special_token_ids if skip else frozenset()
    prompt_bytes = b"".join(tokenizer.token_bytes(i) for i in prompt if i not in skipped)
    whole = tokenizer.decode(prompt + output, skip_special_tokens=skip)
    expected = whole[len(_finished_characters(prompt_bytes).decode("utf-8", "replace")) :]
    assert stream(tokenizer, prompt, output, cuts, skip_special_tokens=skip) == expected


def _finished_characters(raw: bytes) -> bytes:
    """`raw` without the beginning of a character at its end, which more bytes can finish."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(raw)
    return raw.removesuffix(decoder.getstate()[0])


@SETTINGS
@given(data=st.data(), cuts=CUTS, skip=st.booleans())
@pytest.mark.parametrize("family", ["llama2", "gemma", "unigram"])
def test_sentencepiece_output_is_decode_of_everything_without_decode_of_the_prompt(
    tokenizers, family, data, cuts, skip
):
    tokenizer = tokenizers[family]
    is_raw = [tokenizer.token_bytes(i) != tokenizer.token_text(i).encode() for i in range(tokenizer.vocab_size)]
    whole_ids = st.sampled_from([i for i, raw in enumerate(is_raw) if not raw])
    characters = st.characters(exclude_categories=["Cs"]).map(lambda char: _raw_ids(tokenizer, char))
    runs = st.lists(whole_ids.map(lambda i: [i]) | characters, max_size=12).map(
        lambda parts: list(chain.from_iterable(parts))
    )
    prompt, output = data.draw(runs), data.draw(runs)
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    expected = tokenizer.decode(prompt + output, skip_special_tokens=skip)[len(before) :]
    assert stream(tokenizer, prompt, output, cuts, skip_special_tokens=skip) == expected


def _raw_ids(tokenizer: HfTokenizer, char: str) -> list[int]:
    if tokenizer.token_bytes(3) != b"\x00":
        return []
    return [3 + byte for byte in char.encode()]


@SETTINGS
@given(raw=st.binary(max_size=10), cuts=CUTS)
def test_invalid_bytes_keep_the_characters_among_them_whatever_the_cut(tokenizers, raw, cuts):
    tokenizer = tokenizers["llama2"]
    prompt, output = tokenizer.encode("x"), [3 + byte for byte in raw]
    text = stream(tokenizer, prompt, output, cuts)
    assert text == stream(tokenizer, prompt, output, [])
    assert text.replace("�", "") == raw.decode("utf-8", "ignore").replace("�", "")
    if text.count("�") == len(raw):
        assert text == tokenizer.decode(prompt + output)[1:]


@SETTINGS
@given(data=st.data(), cuts=CUTS)
def test_word_piece_output_is_decode_of_everything_without_decode_of_the_prompt(tokenizers, data, cuts):
    tokenizer = tokenizers["word_piece"]
    prompt, output = data.draw(ids(tokenizer)), data.draw(ids(tokenizer))
    whole, before = tokenizer.decode(prompt + output), tokenizer.decode(prompt)
    assert stream(tokenizer, prompt, output, cuts) == whole[len(before) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_sentence_streams_token_by_token_as_it_decodes(tokenizers, family, text):
    tokenizer = tokenizers[family]
    prompt, output = tokenizer.encode("a"), tokenizer.encode(text, add_special_tokens=False)
    before = tokenizer.decode(prompt)
    expected = tokenizer.decode(prompt + output)[len(before) :]
    assert stream(tokenizer, prompt, output, list(range(1, len(output)))) == expected


def test_no_piece_ever_ends_inside_a_character(tokenizers):
    for family in ("qwen", "llama2"):
        tokenizer = tokenizers[family]
        detokenizer = tokenizer.detokenizer([])
        pieces = [detokenizer.push([i]) for i in tokenizer.encode("日本😀é", add_special_tokens=False)]
        assert "�" not in "".join(pieces)
        assert detokenizer.flush() == ""


def test_an_unfinished_character_comes_out_as_replacement_at_the_end(tokenizers):
    for family in FAMILIES[:4]:
        tokenizer = tokenizers[family]
        raw = tokenizer.encode("\U0001f9ff", add_special_tokens=False)[-4:]
        detokenizer = tokenizer.detokenizer(tokenizer.encode("x"))
        assert detokenizer.push(raw[:1]) == ""
        assert set(detokenizer.flush()) == {"�"}


def test_a_character_begun_in_the_prompt_is_finished_by_the_output(tokenizers):
    for family in ("qwen", "llama2"):
        tokenizer = tokenizers[family]
        raw = tokenizer.encode("\U0001f9ff", add_special_tokens=False)[-4:]
        assert tokenizer.detokenizer(raw[:1]).push(raw[1:]) == "\U0001f9ff"


def test_the_leading_space_is_dropped_only_at_the_beginning_of_the_text(tokenizers):
    tokenizer = tokenizers["llama2"]
    output = tokenizer.encode("hello", add_special_tokens=False)
    bos = tokenizer.bos_token_id
    assert stream(tokenizer, [bos], output, [1]) == "hello"
    assert stream(tokenizer, [bos], output, [1], skip_special_tokens=False) == " hello"
    assert stream(tokenizer, tokenizer.encode("say"), output, [1]) == " hello"


def test_special_tokens_appear_only_when_asked_for(tokenizers):
    tokenizer = tokenizers["qwen"]
    output = tokenizer.encode("hi<|im_end|><tool_call>")
    assert stream(tokenizer, [], output, [1, 2]) == "hi<tool_call>"
    assert stream(tokenizer, [], output, [1, 2], skip_special_tokens=False) == "hi<|im_end|><tool_call>"


def test_spaces_between_special_tokens_can_be_left_out_where_the_decoder_writes_them(tokenizers):
    tokenizer = tokenizers["word_piece"]
    options = {"skip_special_tokens": False}
    assert stream(tokenizer, [], [1, 2, 1], [1, 2], **options) == "[CLS] [SEP] [CLS]"
    options["spaces_between_special_tokens"] = False
    assert stream(tokenizer, [], [1, 2, 1], [1, 2], **options) == "[CLS][SEP][CLS]"
