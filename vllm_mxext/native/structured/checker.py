"""`GrammarChecker`: compiles a grammar once, in a process of its own, before its request is let in.

llguidance bounds most of what a grammar can cost, but not all: deep ones overflow the stack, and some take minutes. So
the first attempt is made where nothing else is lost: a child with limits on processor time and memory, whose death is
the verdict.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from vllm_mxext.errors import EngineNotReadyError, InvalidRequestError
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

LENGTH = struct.Struct("<I")
"""In front of every message on the child's pipes."""

CHECK_COMMAND = (sys.executable, "-m", "vllm_mxext.native.structured.check_process")

_TOO_SLOW = "compiling it takes too long; make it simpler"
_TOO_DEEP = "it is too deep or too large to be compiled; make it simpler"


class CompileCheck(Protocol):
    """Tries whether a grammar compiles."""

    def check(self, grammar: str) -> None:
        """Returns if it does.

        Raises:
            InvalidRequestError: it does not; the text is the reason.
        """
        ...

    def close(self) -> None:
        """Releases what it holds; may be called again."""
        ...


class GrammarChecker:
    """A child process that compiles grammars, one at a time; started by the first one, replaced when it dies.

    Args:
        tokenizer_path: folder or file of the tokenizer.
        vocab_size: width of the model's logits.
        end_token_ids: ids that end an output.
        command: program and arguments to start; those above are appended.
    """

    def __init__(
        self,
        tokenizer_path: Path,
        vocab_size: int,
        end_token_ids: list[int],
        *,
        command: tuple[str, ...] = CHECK_COMMAND,
    ) -> None:
        ends = ",".join(map(str, end_token_ids))
        self._command = [*command, str(tokenizer_path), str(vocab_size), ends]
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def check(self, grammar: str) -> None:
        """Compiles a grammar in the child; waits for those before it.

        Raises:
            InvalidRequestError: it cannot be compiled within the limits; the text is the reason.
            EngineNotReadyError: the child cannot be started, or this has been closed.
        """
        with self._lock:
            process = self._running()
            try:
                reason = self._ask(process, grammar)
            except BaseException:  # as by Ctrl-C: the answer must not be taken for that of the next grammar
                self._process = None
                process.kill()
                process.wait()
                raise
        if reason:
            raise InvalidRequestError(
                f"The structured output cannot be enforced: {reason}.", param="structured_outputs"
            )

    def close(self) -> None:
        """Ends the child; may be called again."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise EngineNotReadyError("The engine has been shut down.")
        if self._process is None or self._process.poll() is not None:
            environ = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(os.path.abspath, sys.path))),
                "PYTHONSAFEPATH": "1",
            }
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environ,
                start_new_session=True,  # Ctrl-C in a terminal is for the program alone
            )
            if _receive(process) is None:
                raise EngineNotReadyError("The process that checks grammars cannot be started; the log says why.")
            self._process = process
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], grammar: str) -> str:
        assert process.stdin is not None
        data = grammar.encode()
        try:
            process.stdin.write(LENGTH.pack(len(data)) + data)
            process.stdin.flush()
            answer = _receive(process)
        except BrokenPipeError:
            answer = None
        if answer is not None:
            return answer
        self._process = None
        code = process.wait()
        logger.warning("A grammar ended the process that checks grammars (exit code %d); it is refused.", code)
        return _TOO_SLOW if code == -signal.SIGXCPU else _TOO_DEEP


def _receive(process: subprocess.Popen[bytes]) -> str | None:
    """Returns the child's next message, or None if it is gone."""
    assert process.stdout is not None
    header = process.stdout.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(header)
    data = process.stdout.read(length)
    return data.decode() if len(data) == length else None
