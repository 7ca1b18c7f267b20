"""`Servers`: registered servers and their processes together; what the commands of `mxext server` do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_mxext.registry.backends import BACKENDS, startable
from vllm_mxext.registry.book import Book, Records, find
from vllm_mxext.registry.errors import NotRunningError, RegistryError, StartFailedError
from vllm_mxext.registry.files import locked
from vllm_mxext.registry.folders import Folders
from vllm_mxext.registry.probe import Probe, probe
from vllm_mxext.registry.processes import end, memory_bytes, wait_for_end
from vllm_mxext.registry.record import ServerRecord
from vllm_mxext.registry.runs import Run, read_run
from vllm_mxext.registry.starting import Plan, Progress, launch, pick_port, plan, wait_until_ready

STOP_TIMEOUT_S = 40.0
"""How long a server may finish its requests: our own takes up to 30 s for them, and a little to end."""

_KEEPER_S = 5.0

_LISTENS_S = 30.0
"""How long a server that does not listen counts as starting."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a server now.

    Attributes:
        record: as registered.
        run: its last run; None if it was never started here, or was stopped.
        is_alive: its process runs.
        probe: what it says; None if there was nobody to ask.
        memory: bytes that it holds; None if it does not run here.
        trouble: why it is not known whether it runs; empty if it is.
    """

    record: ServerRecord
    run: Run | None
    is_alive: bool
    probe: Probe | None
    memory: int | None = None
    trouble: str = ""

    @property
    def word(self) -> str:
        """One of the states that `docs/servers.md` names."""
        if self.trouble:
            return "unknown"
        if self.record.is_remote:
            good, bad = "reachable", "unreachable"
        elif self.is_alive:
            good, bad = "running", "not answering"
        else:
            return "stopped" if self.run is None or self.run.exit_code == 0 else "died"
        if self.is_ready:
            return good
        if self.probe is not None and self.probe.phase:
            return "starting"
        return bad if self.probe is None or not self.probe.is_reachable else "not ready"

    @property
    def is_ready(self) -> bool:
        """Whether it serves requests."""
        return self.probe is not None and self.probe.is_ready

    @property
    def url(self) -> str | None:
        """Its address for clients on this machine; None if it has none yet."""
        return self.record.url() if self.run is None else self.record.url(self.run.port, self.run.host)


@dataclass(frozen=True, slots=True)
class Started:
    """What a start has done.

    Attributes:
        record: as registered now.
        run: the process.
        was_running: nothing was started.
        seconds: until it was ready; None if nobody waited.
    """

    record: ServerRecord
    run: Run
    was_running: bool
    seconds: float | None


class Servers:
    """Registered servers and their processes.

    Args:
        folders: of the user.
        environ: variables of whoever commands.

    Attributes:
        folders: of the user.
        book: the registry's file.
    """

    def __init__(self, folders: Folders, environ: Mapping[str, str]) -> None:
        self.folders = folders
        self.book = Book(folders)
        self._environ = environ

    def start(
        self, name: str, *, timeout_s: float | None, report: Callable[[Progress], None] = lambda _progress: None
    ) -> Started:
        """Starts a server; one that runs is left alone.

        Args:
            name: of it.
            timeout_s: how long to wait until it is ready; None does not wait.
            report: told how far it is.

        Raises:
            ConfigError: it cannot be started as it is registered.
            RegistryError: it could not be started, or was not ready in time.
        """
        with self._alone_with(name):
            run = self._alive_run(name)
            if run is not None:
                record, was_running = self._own(name), True
            else:
                plan, was_running = self._planned(name), False
                record, run = plan.record, self._launched(plan, 0)
        return self._awaited(record, run, was_running, timeout_s, report)

    def restart(
        self,
        name: str,
        *,
        stop_timeout_s: float,
        timeout_s: float | None,
        report: Callable[[Progress], None] = lambda _progress: None,
    ) -> Started:
        """Stops a server if it runs, and starts it; one that cannot be started as it is registered is not stopped.

        Args:
            name: of it.
            stop_timeout_s: how long it may take to end.
            timeout_s: how long to wait until it is ready; None does not wait.
            report: told how far it is.

        Raises:
            ConfigError: it cannot be started as it is registered.
            RegistryError: it could not be started, or was not ready in time.
        """
        with self._alone_with(name):
            before = self._alive_run(name)
            plan = self._planned(name, held=before.port if before is not None else None)
            run = self._launched(plan, stop_timeout_s)
        try:
            return self._awaited(plan.record, run, False, timeout_s, report)
        except StartFailedError as error:
            left = " The one that ran before has been stopped, so that none runs now." if before is not None else ""
            raise StartFailedError(f"{error}{left}", log_tail=error.log_tail, hint=error.hint) from None

    def _alive_run(self, name: str) -> Run | None:
        run = read_run(self.folders.run_file(name))
        return run if run is not None and run.server.is_alive() else None

    def _own(self, name: str) -> ServerRecord:
        record = self.book.get(name)
        if record.is_remote:
            raise RegistryError(
                f"'{name}' is {record.endpoint_url}, which somebody else runs; only they start and stop it."
            )
        return record

    def _planned(self, name: str, *, held: int | None = None) -> Plan:
        """Prepares a start under the registry's lock, so that two starts never choose the same port."""
        with self.book.change() as records:
            record = self._own(name)
            made = plan(record, startable(record), self._environ)
            others = [one for one in records.values() if one.name != name and not one.is_remote]
            port = pick_port(record, self._ports_of(others), {one.known_port for one in others}, held)
            if record.port is None and record.chosen_port != port:
                records[name] = record = replace(record, chosen_port=port)
        return replace(made, record=record, port=port)

    def _ports_of(self, records: list[ServerRecord]) -> dict[tuple[str, int], str]:
        """Returns which of some servers have which address now; one that starts may not listen there yet."""
        found = {}
        for record in records:
            with suppress(RegistryError):  # of a damaged file nothing is known
                run = self._alive_run(record.name)
                if run is not None:
                    found[run.host, run.port] = record.name
        return found

    def _launched(self, plan: Plan, stop_timeout_s: float) -> Run:
        """Starts a server after what runs of it has ended: an earlier keeper is to write down nothing after the new."""
        self._end(plan.record.name, stop_timeout_s)
        return launch(plan, self.folders)

    def _awaited(
        self,
        record: ServerRecord,
        run: Run,
        was_running: bool,
        timeout_s: float | None,
        report: Callable[[Progress], None],
    ) -> Started:
        seconds = None
        if timeout_s is not None:
            try:
                seconds = wait_until_ready(record, run, self.folders, timeout_s, report)
            except StartFailedError:
                with locked(self._lock_of(record.name)):  # whoever stopped it has done so then
                    last = read_run(self.folders.run_file(record.name))
                if last is None or last.server != run.server:
                    raise NotRunningError(
                        f"'{record.name}' was stopped by another command before it was ready."
                    ) from None
                raise
        return Started(record, run, was_running, seconds)

    @contextmanager
    def changing(self, *names: str) -> Iterator[Records]:
        """Yields all servers to be changed in place, as `Book.change()` does.

        Args:
            *names: of those that change.

        Raises:
            RegistryError: one that runs here would become somebody else's, so that nobody could stop it.
        """
        with self.book.change() as records:
            yield records
            for name in names:
                if records[name].is_remote and self._alive_run(name) is not None:
                    raise RegistryError(f"'{name}' is running here; stop it first with 'mxext server stop {name}'.")

    def stop(self, name: str, *, timeout_s: float = STOP_TIMEOUT_S) -> bool | None:
        """Lets a server finish its requests and end, and kills it when it does not.

        Args:
            name: of it.
            timeout_s: how long it may take.

        Returns:
            Whether it ended by itself; None if it did not run.

        Raises:
            RegistryError: it is not registered, or not ours.
        """
        with self._alone_with(name):
            if self._alive_run(name) is None:
                self._own(name)
            return self._end(name, timeout_s)

    def _end(self, name: str, timeout_s: float) -> bool | None:
        path = self.folders.run_file(name)
        run = read_run(path)
        if run is None:
            return None
        is_gentle = end(run.server, timeout_s=timeout_s) if run.server.is_alive() else None
        if not wait_for_end(run.keeper, _KEEPER_S):  # it is to write down nothing after us
            end(run.keeper, timeout_s=0)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RegistryError(f"'{path}' cannot be removed: {error.strerror}; give yourself the right.") from None
        return is_gentle

    def remove(self, name: str, *, force: bool, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Takes a server off the registry, with its logs.

        Args:
            name: of it.
            force: stop it first if it runs.
            timeout_s: how long it may take to end.

        Raises:
            RegistryError: it is not registered, or runs and is not to be stopped.
        """
        with self._alone_with(name):
            if not force and self._alive_run(name) is not None:
                raise RegistryError(
                    f"'{name}' is running; stop it first with 'mxext server stop {name}', or remove it with --force."
                )
            self._end(name, timeout_s)
            with self.book.change() as records:
                find(records, name)
                del records[name]
            shutil.rmtree(self.folders.of(name), ignore_errors=True)

    def status(self, name: str) -> Status:
        """Returns what is known of a server, asking it.

        Raises:
            RegistryError: it is not registered, or the registry cannot be read.
        """
        return self._status_of(self.book.get(name))

    def all(self) -> list[Status]:
        """Returns what is known of all servers, asking them at the same time.

        Raises:
            RegistryError: the registry cannot be read.
        """
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to import

        records = list(self.book.read().values())
        with ThreadPoolExecutor(max_workers=max(1, min(16, len(records)))) as pool:
            return list(pool.map(self._status_of, records))

    def _status_of(self, record: ServerRecord) -> Status:
        try:
            run = None if record.is_remote else read_run(self.folders.run_file(record.name))
        except RegistryError as error:
            return Status(record, None, False, None, trouble=str(error))
        is_alive = run is not None and run.server.is_alive()
        status = Status(record, run, is_alive, None)
        if not (is_alive or record.is_remote) or status.url is None:
            return status
        variable = record.api_key_env
        if variable is None and not record.is_remote:  # what the server got from whoever started it; others get no key
            variable = BACKENDS[record.kind].key_variable
        key = self._environ.get(variable) if variable is not None else None
        memory = memory_bytes(run.server) if run is not None else None
        answer = probe(status.url, key)
        if run is not None and not answer.is_reachable and time.time() - run.started_at < _LISTENS_S:
            answer = Probe(phase="starting", problem="it does not listen yet")
        return replace(status, probe=answer, memory=memory)

    @contextmanager
    def _alone_with(self, name: str) -> Iterator[None]:
        """Holds off other commands that start, stop or remove the same server."""
        self.book.get(name)
        with locked(self._lock_of(name)):
            yield

    def _lock_of(self, name: str) -> Path:
        return self.folders.state / "locks" / f"{name}.lock"
