"""`mxext hub pull`, `download-to-cache` and `create-model-store`: a model's files come to this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_mxext.cli.hub_commands.asking import Asked, read
from vllm_mxext.cli.hub_commands.events import showing
from vllm_mxext.cli.hub_commands.parsing import add_choice, add_events, command_parser
from vllm_mxext.config.parser import Parser
from vllm_mxext.errors import DownloadError, HubCause
from vllm_mxext.hub import mx_download
from vllm_mxext.hub.as_json import snapshot_as_json
from vllm_mxext.hub.entries import FoundModel, remember
from vllm_mxext.hub.exit_codes import DONE
from vllm_mxext.hub.injection import inject
from vllm_mxext.hub.judgement import Judgement, State
from vllm_mxext.hub.manifest.model import Profile
from vllm_mxext.hub.mx_download import Downloading, Wish, wish_for
from vllm_mxext.hub.references import with_adapters, with_local_references
from vllm_mxext.hub.selection import find_profile
from vllm_mxext.hub.startup import choose
from vllm_mxext.hub.store.snapshot import Snapshot


def pull(argv: Sequence[str]) -> int:
    """Downloads what a start of the model needs, or what of it is newer at its source."""
    parser = command_parser(
        "pull",
        "Download what a start of the model needs. The source is asked for something newer even if the model is "
        "stored; what is there already is not downloaded again, and interrupted downloads go on where they were.",
        "MODEL",
    )
    return _download(_with_profiles(parser), argv, asks_source=True)


def download_to_cache(argv: Sequence[str]) -> int:
    """Downloads what is not stored yet."""
    parser = command_parser(
        "download-to-cache",
        "Download what of a model is not stored yet: the best profile, some profiles, or all.",
        "MODEL",
    )
    return _download(_with_profiles(parser), argv, asks_source=False)


def create_model_store(argv: Sequence[str]) -> int:
    """Writes a model as a plain folder."""
    from vllm_mxext.hub.plain_folder import write_plain_folder  # noqa: PLC0415 - only this command copies

    parser = command_parser(
        "create-model-store",
        "Write a model as a folder of ordinary files that engines and other programs read; it appears whole or not at "
        "all, and a folder that is not empty is left alone.",
        "MODEL --output FOLDER",
    )
    add_choice(parser)
    add_events(parser)
    parser.add_argument(
        "-o", "--output", "--model-store", type=Path, required=True, metavar="FOLDER", help="folder to make"
    )
    asked = read(parser, argv)
    found = asked.find()
    profile = _best(asked, found)
    folder, snapshot = found.folder, None
    if folder is None:
        with _downloading(asked) as downloading:
            folder, snapshot = mx_download.obtain(_wish(asked, found, profile), asked.config, downloading)
    target = asked.own.output.expanduser().absolute()
    size = write_plain_folder(folder, snapshot, target)
    value = {"model": found.entry.name, "profile": profile.name, "folder": str(target), "size": size}
    asked.answer(value, str(target))
    return DONE


def _with_profiles(parser: Parser) -> Parser:
    add_events(parser)
    parser.add_argument("--hardware", type=Path, metavar="FILE", help="choose for the machine of this file instead")
    parser.add_argument("--goal", metavar="GOAL", help="the same as --selection-goal: latency, throughput or memory")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--profile", dest="profiles", action="append", metavar="PROFILE", default=[],
        help="name, alias or id, whether it can run here or not; may be given several times",
    )  # fmt: skip
    group.add_argument("--profiles", dest="profiles", nargs="+", metavar="PROFILE", help="the same, several at once")
    group.add_argument("--all", action="store_true", help="the files of all profiles")
    return parser


def _download(parser: Parser, argv: Sequence[str], *, asks_source: bool) -> int:
    asked = read(parser, argv)
    if asked.config.manifest is None:  # one that was asked for may have a single model
        asked.require_model()
    found = asked.find(asks_again=asks_source and not asked.config.network.is_offline)
    profiles = _profiles(asked, found)
    wishes = [_wish(asked, found, profile) for profile in profiles]
    pulled: list[dict[str, Any]] = []
    with _downloading(asked) as downloading:
        for wish in {wish.artifact.name: wish for wish in wishes}.values():
            folder, snapshot = _obtain(asked, found, wish, downloading, asks_source=asks_source)
            pulled.append(_facts(wish, folder, snapshot))
        if asks_source:
            remember(asked.app, asked.config, found)
        for profile in profiles:
            _obtain_references(asked, found, profile, downloading)
    value = {"model": found.entry.name, "profiles": [profile.name for profile in profiles], "pulled": pulled}
    asked.answer(value, "\n".join(str(each["folder"]) for each in pulled))
    return DONE


def _profiles(asked: Asked, found: FoundModel) -> list[Profile]:
    if asked.own.all:
        return list(found.entry.profiles)
    if asked.own.profiles:
        return [find_profile(found.entry, text) for text in asked.own.profiles]
    return [_best(asked, found)]


def _best(asked: Asked, found: FoundModel) -> Profile:
    if asked.config.profile not in (None, "default"):
        return find_profile(found.entry, asked.config.profile)  # its files are wanted wherever it can run
    chosen = choose(asked.app, asked.config, found, asked.hardware()).chosen
    assert chosen is not None, "choose() raises if nothing can run"
    return chosen.profile


def _wish(asked: Asked, found: FoundModel, profile: Profile) -> Wish:
    return wish_for(found.entry, asked.config, profile.artifact)


def _obtain(
    asked: Asked, found: FoundModel, wish: Wish, downloading: Downloading, *, asks_source: bool
) -> tuple[Path, Snapshot | None]:
    if found.folder is not None:
        return found.folder, None
    if not asks_source:
        return mx_download.obtain(wish, asked.config, downloading)
    snapshot = mx_download.pull(wish, asked.config, downloading)
    return snapshot.folder, snapshot


def _obtain_references(asked: Asked, found: FoundModel, profile: Profile, downloading: Downloading) -> None:
    """Sees to it that adapters, tokenizer and draft model of a start are here too."""
    app = inject(asked.app, found.entry, Judgement(profile, State.RUNNABLE, ()))
    with_local_references(with_adapters(app, found), asked.config, downloading)


def _facts(wish: Wish, folder: Path, snapshot: Snapshot | None) -> dict[str, Any]:
    stored = None if snapshot is None else snapshot_as_json(snapshot, has_files=True)
    return {"artifact": wish.artifact.name, "folder": str(folder), "snapshot": stored}


@contextmanager
def _downloading(asked: Asked) -> Iterator[Downloading]:
    """Shows progress, and says what is left when somebody interrupts it."""
    try:
        with showing(asked) as listener:
            yield Downloading(listener)
    except KeyboardInterrupt:
        raise DownloadError(
            "Interrupted; what has arrived is kept, and the same command goes on from there.",
            cause=HubCause.INTERRUPTED,
        ) from None
