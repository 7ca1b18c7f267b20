"""`CoreSupervisor`: keeps an engine core running and gives every open request to the next one when it dies."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_mxext.engine.blame import Blame
from vllm_mxext.engine.client import EnginePhase, EngineStatus
from vllm_mxext.errors import AdapterError, EngineDeadError
from vllm_mxext.logger import init_logger
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native.core_client import AsyncCoreClient, CoreExit
from vllm_mxext.native.protocol import AdapterKey, AdapterUse, EngineCoreOutputs, EngineCoreRequest

logger = init_logger(__name__)

_START_PHASES = {"loading": (EnginePhase.LOADING, 0.05, 0.85), "warming up": (EnginePhase.WARMING_UP, 0.9, 0.1)}
"""Start-up phase of the core -> phase reported, progress at its beginning, and its share of the whole start-up."""

_MAX_DEATHS_OF_LOADING = 2
"""Cores that may die while they read one adapter, which is taken to be the reason then."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a core is replaced, and how fast.

    Attributes:
        first_backoff_s: wait before the second restart in a row that brought nothing, in seconds; doubles each time.
        max_backoff_s: longest wait.
        max_failed_starts: restarts in a row that may fail before the engine is given up; the first start may not fail.
        max_idle_deaths: deaths in a row without an open request or adapter being loaded before the engine is given up.
        stable_after_s: a core that has lived so long ends every row of deaths.
    """

    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_failed_starts: int = 3
    max_idle_deaths: int = 5
    stable_after_s: float = 60.0


class OpenRequests(Protocol):
    """The requests a supervisor serves, and the adapters that they may name; they outlive the core."""

    def open_core_requests(self) -> list[EngineCoreRequest]:
        """Every open request as it goes on where it stands, oldest first."""
        ...

    def take_outputs(self, outputs: EngineCoreOutputs) -> None:
        """Takes what one engine step brought."""
        ...

    def known_adapters(self) -> list[messages.AdapterSpec]:
        """Every adapter that requests may name, or that open ones do."""
        ...

    def take_adapter_uses(self, uses: Sequence[AdapterUse]) -> None:
        """Takes how all adapters stand."""
        ...

    def core_ready(self, info: messages.CoreInfo) -> None:
        """Hears what the new core is like."""
        ...

    def core_died(self) -> None:
        """Hears that the core died and that the open requests go to the next one."""
        ...

    def convict(self, core_request_id: str, reason: str) -> None:
        """Ends a request that kills the core."""
        ...

    def engine_lost(self, reason: str) -> None:
        """Ends every open request: there will be no other core."""
        ...


class CoreSupervisor:
    """Runs one core after the other; all of it on the event loop, driven by what the core says.

    Requests that may be to blame for repeated deaths are given to the next core one at a time, each after the one
    before has got a token; all others wait until that is settled.

    Args:
        spawn: makes a client for a new core.
        requests: the open requests.
        policy: how often and how fast to restart.
    """

    def __init__(
        self, spawn: Callable[[], AsyncCoreClient], requests: OpenRequests, policy: RestartPolicy | None = None
    ) -> None:
        self._spawn = spawn
        self._requests = requests
        self._policy = policy or RestartPolicy()
        self._blame = Blame()
        self._core: AsyncCoreClient | None = None
        self._is_stopping = False
        self._restart: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        """Set when the engine is ready for the first time, or lost."""
        self._serving = asyncio.Event()
        """Set while a core is ready, and when there will be none any more."""
        self._info: messages.CoreInfo | None = None
        self._phase = EnginePhase.STARTING
        self._progress = 0.0
        self._detail = ""
        self._phase_seconds: list[tuple[str, float]] = []
        self._phase_began_s = 0.0
        self._is_ready = False
        self._ready_s = 0.0
        self._last_sign_s = 0.0
        self._in_core: set[str] = set()
        self._num_loading = 0
        self._with_new_tokens: set[str] = set()
        self._suspects: deque[str] = deque()
        self._probe: str | None = None
        self._num_failed_starts = 0
        self._num_idle_deaths = 0
        self._num_fruitless_lives = 0

    @property
    def status(self) -> EngineStatus:
        """Where the engine stands."""
        return EngineStatus(self._phase, self._progress, self._detail, tuple(self._phase_seconds))

    @property
    def info(self) -> messages.CoreInfo | None:
        """What the core reported when it was ready; None before."""
        return self._info

    @property
    def core(self) -> AsyncCoreClient | None:
        """The core of the moment, for tests and tools that look at its process."""
        return self._core

    @property
    def silence_s(self) -> float:
        """Seconds for which a core that is ready has said nothing; one without work says regularly that it is alive."""
        return self._loop.time() - self._last_sign_s if self._is_ready else 0.0

    @property
    def is_at_work(self) -> bool:
        """Whether the core is seen to compute, although it may say nothing for long."""
        return self._core is not None and self._core.is_at_work

    def start(self) -> None:
        """Starts the first core; needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._spawn_core()

    async def wait_until_settled(self) -> None:
        """Returns when the engine is ready for the first time.

        Raises:
            EngineDeadError: it could not be started; the text is the root cause.
        """
        await self._settled.wait()
        if self._phase is EnginePhase.DEAD:
            raise EngineDeadError(self._detail)

    def submit(self, requests: Sequence[EngineCoreRequest]) -> None:
        """Gives new requests to the core, now or when it is back; they must be among the open requests already."""
        if self._is_ready and self._probe is None:
            self._add(requests)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Tells the core to stop work on requests that are not open any more."""
        request_ids = list(request_ids)
        for request_id in request_ids:
            self._forget(request_id)
        if self._core is not None and self._is_ready:
            self._core.abort(request_ids)
        self._continue_probing()

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks; a core that is not ready has none."""
        if self._core is None or not self._is_ready:
            return True
        return await self._core.reset_prefix_cache()

    async def load_adapter(self, spec: messages.AdapterSpec) -> None:
        """Has an adapter read by the core; waits for one that is ready, and asks the next one if it dies meanwhile.

        Raises:
            AdapterError: it cannot be read, or cores die of reading it.
            EngineDeadError: the engine is gone for good.
        """
        for _ in range(_MAX_DEATHS_OF_LOADING):
            await self._serving.wait()
            if self._core is None or not self._is_ready:
                raise EngineDeadError(self._detail or "The engine has been shut down.")
            self._num_loading += 1
            try:
                if await self._core.load_adapter(spec):
                    return
            finally:
                self._num_loading -= 1
        raise AdapterError(
            f"Adapter '{spec.name}' was not loaded: the engine process died twice while it read '{spec.path}'.",
            param="lora_path",
        )

    async def drop_adapter(self, key: AdapterKey) -> None:
        """Has the core forget an adapter that no request uses any more; one that is not ready does not know it."""
        if self._core is not None and self._is_ready:
            await self._core.drop_adapter(key)

    async def stop(self) -> None:
        """Ends the core for good and waits until it is gone; may be called again, also after it was cancelled."""
        self._is_stopping = True
        if self._restart is not None:
            self._restart.cancel()
        self._is_ready = False
        self._serving.set()
        if self._core is not None:
            await self._core.stop()
        self._core = None

    # --- what the core says ---

    def on_core_message(self, message: messages.FromCore) -> None:
        """Takes one message of the core."""
        self._last_sign_s = self._loop.time()
        match message:
            case messages.StepOutputs(outputs):
                self._take_outputs(outputs)
            case messages.Progress(phase, fraction):
                name, begin, share = _START_PHASES[phase]
                self._enter_phase(name, begin + share * fraction)
            case messages.Ready(info):
                self._become_ready(info)
            case messages.AdapterDone(_, _, adapters):
                self._requests.take_adapter_uses(adapters)
            case messages.Alive():
                pass
            case _:
                raise AssertionError(f"A {type(message).__name__} is not for the supervisor.")

    def on_core_exit(self, exit_: CoreExit) -> None:
        """Takes the news that the core is gone: starts another one, or gives up."""
        if self._is_stopping:
            self._in_core.clear()
            return
        was_ready, self._is_ready = self._is_ready, False
        self._serving.clear()
        self._core, self._probe = None, None
        self._suspects.clear()
        if exit_.is_config_error or not (was_ready or self._may_fail_to_start()):
            self._give_up(exit_.reason)
            return
        if was_ready and not self._account_for_death(exit_):
            return
        delay_s = self._backoff_s()
        logger.error(
            "%s A new one starts in %.1f s; open requests that go on there: %d.",
            exit_.reason,
            delay_s,
            len(self._requests.open_core_requests()),
        )
        self._phase, self._progress, self._detail = EnginePhase.RESTARTING, 0.0, exit_.reason
        self._restart = self._loop.call_later(delay_s, self._spawn_core)

    # --- one life ---

    def _spawn_core(self) -> None:
        self._in_core.clear()
        self._with_new_tokens.clear()
        self._phase_seconds.clear()
        self._phase_began_s = self._last_sign_s = self._loop.time()
        self._core = self._spawn()
        self._core.start(self)

    def _enter_phase(self, phase: EnginePhase, progress: float) -> None:
        """Notes how far start-up is; a restart is reported as such, whatever its phase."""
        self._progress = progress
        if not self._settled.is_set() and phase is not self._phase:
            now_s = self._loop.time()
            self._phase_seconds.append((self._phase.value, now_s - self._phase_began_s))
            self._phase, self._phase_began_s = phase, now_s

    def _become_ready(self, info: messages.CoreInfo) -> None:
        now_s = self._loop.time()
        self._phase_seconds.append((self._phase.value, now_s - self._phase_began_s))
        self._info, self._is_ready, self._ready_s = info, True, now_s
        self._phase, self._progress, self._detail = EnginePhase.READY, 1.0, ""
        self._num_failed_starts = 0
        self._settled.set()
        logger.info(
            "The engine is ready after %s.",
            ", ".join(f"{seconds:.2f} s {name}" for name, seconds in self._phase_seconds),
        )
        self._requests.core_ready(info)
        if self._core is not None:
            for spec in self._requests.known_adapters():
                self._core.add_adapter(spec, reads_now=spec.is_pinned)
        self._serving.set()
        open_requests = self._requests.open_core_requests()
        self._suspects = deque(self._blame.suspects(request.request_id for request in open_requests))
        self._probe = None
        if self._suspects:
            self._probe_next()
        else:
            self._add(open_requests)

    def _add(self, requests: Sequence[EngineCoreRequest]) -> None:
        if self._core is None or not requests:
            return
        self._in_core.update(request.request_id for request in requests)
        self._core.add_requests(requests)

    def _take_outputs(self, outputs: EngineCoreOutputs) -> None:
        for output in outputs.outputs:
            if output.finish_reason is not None:
                self._forget(output.request_id)
            elif output.new_token_ids:
                self._with_new_tokens.add(output.request_id)
                self._blame.clear(output.request_id)
        if outputs.outputs:
            self._num_fruitless_lives = self._num_idle_deaths = 0
        self._requests.take_outputs(outputs)
        self._continue_probing()

    def _forget(self, request_id: str) -> None:
        self._in_core.discard(request_id)
        self._blame.clear(request_id)

    def _continue_probing(self) -> None:
        probe = self._probe
        if probe is not None and (probe in self._with_new_tokens or probe not in self._in_core):
            self._probe_next()

    def _probe_next(self) -> None:
        """Gives the core the next suspect, or everything that waited when none is left."""
        waiting = {r.request_id: r for r in self._requests.open_core_requests() if r.request_id not in self._in_core}
        while self._suspects:
            suspect = waiting.get(self._suspects.popleft())
            if suspect is not None:
                self._probe = suspect.request_id
                self._add([suspect])
                return
        self._probe = None
        self._add(list(waiting.values()))

    # --- deaths ---

    def _may_fail_to_start(self) -> bool:
        """Whether a core that never became ready may be followed by another one."""
        self._num_failed_starts += 1
        self._num_fruitless_lives += 1
        return self._settled.is_set() and self._num_failed_starts <= self._policy.max_failed_starts

    def _account_for_death(self, exit_: CoreExit) -> bool:
        """Finds out who is to blame; False if the engine was given up."""
        if self._loop.time() - self._ready_s >= self._policy.stable_after_s:
            self._num_fruitless_lives = self._num_idle_deaths = 0
        self._num_fruitless_lives += 1
        self._num_idle_deaths = 0 if self._in_core or self._num_loading else self._num_idle_deaths + 1
        if self._num_idle_deaths >= self._policy.max_idle_deaths:
            self._give_up(f"It died {self._num_idle_deaths} times without any work; the last time: {exit_.reason}")
            return False
        self._requests.core_died()
        self._blame.record_death(self._in_core, self._with_new_tokens)
        for request_id in list(self._in_core):
            if self._blame.is_guilty(request_id):
                logger.error("Request %s killed the engine process again while alone; it is given up.", request_id)
                self._requests.convict(request_id, f"The engine process died of this request. {exit_.reason}")
                self._forget(request_id)
        return True

    def _backoff_s(self) -> float:
        """Seconds to wait before the next start: none after a life that brought tokens, and after the first without."""
        num_waits = self._num_fruitless_lives - 1
        if num_waits <= 0:
            return 0.0
        return min(self._policy.first_backoff_s * 2.0 ** (num_waits - 1), self._policy.max_backoff_s)

    def _give_up(self, reason: str) -> None:
        logger.critical("The engine cannot go on: %s", reason)
        self._phase, self._progress, self._detail = EnginePhase.DEAD, 0.0, reason
        self._settled.set()
        self._serving.set()
        self._requests.engine_lost(reason)
