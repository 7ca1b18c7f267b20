"""`examine()`: all checks in the order in which a start would meet what they are about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.hub import HubConfig
from vllm_mxext.errors import ConfigError, HubError, ManifestError, MxError, NoCompatibleProfileError
from vllm_mxext.findings import Finding, Level, ok, problem
from vllm_mxext.hub.doctor import environment_checks, folder_checks, source_checks
from vllm_mxext.hub.entries import FoundModel, find_entry
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Judgement
from vllm_mxext.hub.manifest.lookup import find_manifest
from vllm_mxext.hub.manifest.model import Manifest
from vllm_mxext.hub.mx_download import is_here, wish_for
from vllm_mxext.hub.startup import choose
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.verifying import verify


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined.

    Attributes:
        app: the intent of a start; names a model, or none.
        config: the hub's settings.
        hardware: the machine.
        probe: asks sources; None = nobody is asked.
        access: asks the operating system who may do what.
    """

    app: AppConfig
    config: HubConfig
    hardware: Hardware
    probe: source_checks.Probe | None
    access: folder_checks.Access = os.access


def examine(patient: Patient) -> list[Finding]:
    """Returns what was found; nothing is changed, and nothing raised that a user could do something about."""
    config = patient.config
    environ = config.network.environ
    findings = [
        *environment_checks.check_variables(
            environ, is_offline=config.network.is_offline, warnings=patient.app.warnings
        ),
        *environment_checks.check_hardware(patient.hardware),
    ]
    manifest, more = _examine_manifest(config)
    findings += more
    found = None
    if manifest is not None and patient.app.model.model is not None:
        found, more = _examine_model(patient)
        findings += more
    chosen, more = _examine_choice(patient, found)
    findings += more
    is_stored = found is not None and chosen is not None and _is_stored(config, found, chosen)
    findings += _examine_store(patient, must_write=not is_stored)
    needed = chosen.estimate.disk if chosen is not None and chosen.estimate is not None and not is_stored else 0
    findings.append(_examine_space(config.folder, needed, "" if found is None else found.entry.name))
    uris = _uris(manifest, found)
    findings += environment_checks.check_packages(
        [uri.partition("://")[0] for uri in uris],
        needs_signing=_needs_signing(config, found),
        uses_socks=environment_checks.uses_socks(environ),
    )
    if patient.probe is not None:
        findings += [source_checks.check_source(uri, patient.probe, environ) for uri in uris]
    return findings


def _examine_manifest(config: HubConfig) -> tuple[Manifest | None, list[Finding]]:
    remedy = "Correct the file; `mxext hub init` writes one to compare with."
    try:
        manifest = find_manifest(config, config.network.environ)
    except ManifestError as error:
        return None, [problem("manifest", str(error), remedy)]
    notes = [ok("manifest", note) for note in manifest.notes]
    return manifest, [ok("manifest", f"It is {manifest.origin}."), *notes]


def _examine_model(patient: Patient) -> tuple[FoundModel | None, list[Finding]]:
    config = patient.config
    if patient.probe is None:
        config = replace(config, network=replace(config.network, is_offline=True))
    try:
        found = find_entry(patient.app, config, may_download=True, environ=config.network.environ)
    except MxError as error:
        remedy = "Correct the name, or see what the other findings say of its source."
        return None, [problem("model", str(error), remedy)]
    return found, [ok("model", f"It is {found.entry.name} ({found.manifest.origin}).")]


def _examine_choice(patient: Patient, found: FoundModel | None) -> tuple[Judgement | None, list[Finding]]:
    if found is None:
        return None, []
    try:
        chosen = choose(patient.app, patient.config, found, patient.hardware).chosen
    except NoCompatibleProfileError as error:
        return None, [problem("profile", str(error), "`mxext hub explain` tells what each profile lacks.")]
    except ConfigError as error:
        return None, [problem("profile", str(error), "Correct --model-profile or the manifest.")]
    except HubError:  # of the store, whose checks tell it
        return None, []
    assert chosen is not None, "choose() raises if nothing can run"
    return chosen, [ok("profile", f"{chosen.profile.name} is {chosen.state.value}: {chosen.reasons[0]}")]


def _is_stored(config: HubConfig, found: FoundModel, chosen: Judgement) -> bool:
    if found.folder is not None:
        return True
    try:
        return is_here(wish_for(found.entry, config, chosen.profile.artifact), config)
    except HubError:  # the checks of the store tell why
        return False


def _examine_store(patient: Patient, *, must_write: bool) -> Iterator[Finding]:
    folder = patient.config.folder
    findings = folder_checks.check_access(folder, must_write=must_write, access=patient.access)
    yield from findings
    if any(finding.level is Level.PROBLEM for finding in findings) or not os.path.isdir(folder):
        return
    if patient.access(folder, os.W_OK):
        yield folder_checks.check_locks(folder)
    partial = folder_checks.check_partial(folder)
    if partial is not None:
        yield partial
    yield from _examine_snapshots(folder)


def _examine_snapshots(folder: Path) -> Iterator[Finding]:
    try:
        store = ModelStore(folder)
        snapshots = store.snapshots()
        faults = verify(store, snapshots, is_quick=True).faults
    except HubError as error:
        yield problem("stored models", str(error), "Give this user the right to read it, or repair the disk.")
        return
    for name in dict.fromkeys(fault.snapshot.name for fault in faults):
        paths = [fault.file.path for fault in faults if fault.snapshot.name == name]
        text = f"{name} is damaged: {', '.join(paths[:3])}{' and others' if len(paths) > 3 else ''}."
        yield problem("stored models", text, f"Run `mxext hub repair {name}`.")
    if not faults:
        yield ok("stored models", "All that is stored has its files.")


def _examine_space(folder: Path, needed: int, needed_for: str) -> Finding:
    nearest = next(path for path in (folder, *folder.parents) if os.path.isdir(path))
    return folder_checks.check_space(folder, shutil.disk_usage(nearest).free, needed, needed_for)


def _uris(manifest: Manifest | None, found: FoundModel | None) -> list[str]:
    """Returns the sources of the model, or without one, one of each scheme of the manifest."""
    if found is not None:
        lists = [found.entry.sources, *(artifact.sources for artifact in found.entry.artifacts)]
        return list(dict.fromkeys(uri for uris in lists for uri in uris))
    if manifest is None:
        return []
    by_scheme: dict[str, str] = {}
    for entry in manifest.models:
        for uri in entry.sources:
            by_scheme.setdefault(uri.partition("://")[0], uri)
    return list(by_scheme.values())


def _needs_signing(config: HubConfig, found: FoundModel | None) -> bool:
    rule = config.signature or (found.entry.security.signature if found is not None else "off")
    return rule != "off"
