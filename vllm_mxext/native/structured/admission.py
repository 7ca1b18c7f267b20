"""`GrammarAdmission`: what the front does with a constraint: server defaults, normalising, a trial, and a cache."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace

from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.native.structured.checker import CompileCheck
from vllm_mxext.native.structured.grammar import grammar_text
from vllm_mxext.tokenizer.interface import Tokenizer

_MAX_CACHED = 256
_MAX_CACHED_CHARS = 8 * 2**20
_JSON = ("json", "json_object", "structural_tag")


class GrammarAdmission:
    """Turns constraints into grammars that are known to compile; safe to use from several threads.

    Args:
        tokenizer: the model's tokenizer.
        check: tries whether a grammar compiles.
        end_token_ids: ids that end an output.
        disable_any_whitespace: no optional whitespace in JSON unless a request brings a pattern.
        disable_additional_properties: objects have no properties but those their schema names.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        check: CompileCheck,
        *,
        end_token_ids: Sequence[int] = (),
        disable_any_whitespace: bool = False,
        disable_additional_properties: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._check = check
        self._end_token_ids = frozenset(end_token_ids)
        self._is_compact = disable_any_whitespace
        self._is_closed = disable_additional_properties
        self._special_tokens: dict[str, int] | None = None
        self._grammars: OrderedDict[str, str] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()

    def grammar(self, params: StructuredOutputsParams) -> str:
        """Returns the normalised grammar of a constraint.

        Raises:
            InvalidRequestError: it is malformed, absurd, or asks for what cannot be enforced.
        """
        params = self._with_defaults(params)
        key = json.dumps(asdict(params), default=str)
        with self._lock:
            found = self._grammars.get(key)
            if found is not None:
                self._grammars.move_to_end(key)
                return found
        grammar = grammar_text(params, self._specials(), self._end_token_ids)
        self._check.check(grammar)
        self._keep(key, grammar)
        return grammar

    def close(self) -> None:
        """Releases what the check holds; may be called again."""
        self._check.close()

    def _with_defaults(self, params: StructuredOutputsParams) -> StructuredOutputsParams:
        if params.constraint not in _JSON:
            return params
        return replace(
            params,
            disable_any_whitespace=params.disable_any_whitespace
            or (self._is_compact and params.whitespace_pattern is None),
            disable_additional_properties=params.disable_additional_properties or self._is_closed,
        )

    def _specials(self) -> dict[str, int]:
        if self._special_tokens is None:
            tokenizer = self._tokenizer
            self._special_tokens = {
                tokenizer.token_bytes(token_id).decode(errors="replace"): token_id
                for token_id in sorted(tokenizer.special_token_ids)
            }
        return self._special_tokens

    def _keep(self, key: str, grammar: str) -> None:
        with self._lock:
            if key not in self._grammars:
                self._num_chars += len(key) + len(grammar)
            self._grammars[key] = grammar
            while len(self._grammars) > _MAX_CACHED or self._num_chars > _MAX_CACHED_CHARS:
                old_key, old_grammar = self._grammars.popitem(last=False)
                self._num_chars -= len(old_key) + len(old_grammar)
