"""`Servers`: registered servers together with their processes; the operations behind the commands of `mxext server`."""

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
from vllm_mxext.registry.runs import KEEPER_S, Run, read_run
from vllm_mxext.registry.starting import Plan, Progress, launch, pick_port, plan, wait_until_ready

STOP_TIMEOUT_S = 40.0
"""How long a server may finish its requests: our own takes up to 30 s for them, and a little to end."""

_LISTENS_S = 30.0
"""How long a server that does not listen counts as starting."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a server.

    Attributes:
        record: its registration.
        run: its last run; None if it was never started here, or was stopped.
        is_alive: whether its process runs.
        probe: its answers; None if it could not be asked.
        memory: bytes of memory that it uses; None if it does not run here.
        trouble: why it is unknown whether it runs; empty if that is known.
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
    """The outcome of a start.

    Attributes:
        record: the server's registration, with the chosen port.
        run: its process.
        was_running: whether it was running already, so that nothing was started.
        seconds: how long it took until it was ready; None if that was not waited for.
    """

    record: ServerRecord
    run: Run
    was_running: bool
    seconds: float | None


class Servers:
    """Registered servers and their processes.

    Args:
        folders: the user's folders.
        environ: environment variables of the command.

    Attributes:
        folders: the user's folders.
        book: the registry's file.
    """

    def __init__(self, folders: Folders, environ: Mapping[str, str]) -> None:
        self.folders = folders
        self.book = Book(folders)
        self._environ = environ

    def start(
        self, name: str, *, timeout_s: float | None, report: Callable[[Progress], None] = lambda _progress: None
    ) -> Started:
        """Starts a server, unless it runs already.

        Args:
            name: its name.
            timeout_s: how long to wait until it is ready; None does not wait.
            report: called with the progress.

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
        """Stops a server if it runs, and starts it; checks first that it can be started as it is registered.

        Args:
            name: its name.
            stop_timeout_s: how long it may take to end.
            timeout_s: how long to wait until it is ready; None does not wait.
            report: called with the progress.

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
            left = " The one that ran before has been stopped, so none runs now." if before is not None else ""
            raise StartFailedError(f"{error}{left}", log_tail=error.log_tail, hint=error.hint) from None

    def _alive_run(self, name: str) -> Run | None:
        run = read_run(self.folders.run_file(name))
        return run if run is not None and run.server.is_alive() else None

    def _own(self, name: str) -> ServerRecord:
        record = self.book.get(name)
        if record.is_remote:
            raise RegistryError(
                f"'{name}' is a remote server at {record.endpoint_url}; start and stop it where it runs."
            )
        return record

    def _planned(self, name: str, *, held: int | None = None) -> Plan:
        """Prepares a start, under the registry's lock so that two starts never choose the same port."""
        with self.book.change() as records:
            record = self._own(name)
            made = plan(record, startable(record), self._environ)
            others = [one for one in records.values() if one.name != name and not one.is_remote]
            port = pick_port(record, self._ports_of(others), {one.known_port for one in others}, held)
            if record.port is None and record.chosen_port != port:
                records[name] = record = replace(record, chosen_port=port)
        return replace(made, record=record, port=port)

    def _ports_of(self, records: list[ServerRecord]) -> dict[tuple[str, int], str]:
        """Returns address -> name of those that run now; one that is starting may not listen there yet."""
        found = {}
        for record in records:
            with suppress(RegistryError):  # a damaged file tells nothing
                run = self._alive_run(record.name)
                if run is not None:
                    found[run.host, run.port] = record.name
        return found

    def _launched(self, plan: Plan, stop_timeout_s: float) -> Run:
        """Starts a server after ending its last run, whose keeper must not write anything after the new one has."""
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
                with locked(self._lock_of(record.name)):  # a command that stops it has finished by then
                    last = read_run(self.folders.run_file(record.name))
                if last is None or last.server != run.server:
                    raise NotRunningError(
                        f"'{record.name}' was stopped by another command before it was ready."
                    ) from None
                raise
        return Started(record, run, was_running, seconds)

    @contextmanager
    def changing(self, *names: str) -> Iterator[Records]:
        """Yields all servers for changing in place, as `Book.change()` does.

        Args:
            *names: those that change.

        Raises:
            RegistryError: one that runs here would become a remote one, so that nobody could stop it.
        """
        with self.book.change() as records:
            yield records
            for name in names:
                if records[name].is_remote and self._alive_run(name) is not None:
                    raise RegistryError(f"'{name}' is running here; stop it first with 'mxext server stop {name}'.")

    def stop(self, name: str, *, timeout_s: float = STOP_TIMEOUT_S) -> bool | None:
        """Lets a server finish its requests and end; kills it if it does not.

        Args:
            name: its name.
            timeout_s: how long it may take.

        Returns:
            Whether it ended without being killed; None if it did not run.

        Raises:
            RegistryError: it is not registered, or is a remote one.
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
        if not wait_for_end(run.keeper, KEEPER_S):  # it is to write down nothing after us
            end(run.keeper, timeout_s=0)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RegistryError(f"'{path}' cannot be removed ({error.strerror}); check its permissions.") from None
        return is_gentle

    def remove(self, name: str, *, force: bool, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Removes a server from the registry, and its logs.

        Args:
            name: its name.
            force: stop it first if it runs.
            timeout_s: how long it may take to end.

        Raises:
            RegistryError: it is not registered, or it runs and `force` is off.
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
        """Returns the state of a server, after asking it.

        Raises:
            RegistryError: it is not registered, or the registry cannot be read.
        """
        return self._status_of(self.book.get(name))

    def all(self) -> list[Status]:
        """Returns the state of all servers, after asking them in parallel.

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
        if variable is None and not record.is_remote:  # the one that the server read at its start; never sent elsewhere
            variable = BACKENDS[record.kind].key_variable
        key = self._environ.get(variable) if variable is not None else None
        memory = memory_bytes(run.server) if run is not None else None
        answer = probe(status.url, key)
        age_s = time.time() - run.started_at if run is not None else 0.0
        if (
            run is not None and not answer.is_reachable and 0.0 <= age_s < _LISTENS_S
        ):  # the clock may have been set back
            answer = Probe(phase="starting", problem="it does not listen yet")
        return replace(status, probe=answer, memory=memory)

    @contextmanager
    def _alone_with(self, name: str) -> Iterator[None]:
        """Excludes other commands that start, stop or remove the same server."""
        self.book.get(name)
        with locked(self._lock_of(name)):
            yield

    def _lock_of(self, name: str) -> Path:
        return self.folders.state / "locks" / f"{name}.lock"
