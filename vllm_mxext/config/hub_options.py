"""Options of the MX Hub: which manifest, profile and sources, and how downloads behave."""

# ruff: noqa: RUF009 - the calls return dataclasses.field()

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.config import values
from vllm_mxext.config.flags import flag


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Which files and settings a model's name stands for, and how they are downloaded."""

    manifest: Path | None = flag(
        None, values.path(),
        "File with models and their profiles; default: the first that is found of /mim/config, /etc/mim/config, the "
        "user's configuration folder and the one in the package.",
        variables=("MIM_MANIFEST_PATH", "NIM_MANIFEST_PATH"),
    )  # fmt: skip
    model_profile: str | None = flag(
        None, values.text("PROFILE"),
        "Profile of the model: its name, an alias, its id or the first characters of it; default: the best for this "
        "machine.",
        variables=("MIM_MODEL_PROFILE", "NIM_MODEL_PROFILE"),
    )  # fmt: skip
    selection_goal: str | None = flag(
        None, values.choice("latency", "throughput", "memory"),
        "What the best profile is: soonest tokens, most tokens, or least memory; default: what the manifest says.",
        variables=("MIM_SELECTION_GOAL",),
    )  # fmt: skip
    tensor_parallel_size: int | None = flag(
        None, values.integer(1), "Devices that share the model: only profiles with this number are considered.",
        variables=("MIM_TENSOR_PARALLEL_SIZE", "NIM_TENSOR_PARALLEL_SIZE"),
    )  # fmt: skip
    revision: str | None = flag(
        None, values.text("REVISION"), "Branch, tag or commit of the model; default: what the manifest or source says."
    )
    download_dir: Path | None = flag(
        None, values.path(), "Folder for downloaded models; default: `models` in --cache-path."
    )
    offline: bool = flag(
        False, values.switch(), "Open no connection: use what has been downloaded.",
        variables=("MIM_OFFLINE", "HF_HUB_OFFLINE"),
    )  # fmt: skip
    frozen: bool = flag(
        False, values.switch(), "Refuse files other than those that model.lock pins.", variables=("MIM_FROZEN",)
    )  # fmt: skip
    lock_file: Path | None = flag(
        None, values.path(), "The file that pins revisions and digests; default: model.lock in the working folder."
    )
    manifest_allow_unsafe: bool = flag(
        False, values.switch(), "Download pickles and Python files too; those of strangers can do harm.",
        variables=("MIM_MANIFEST_ALLOW_UNSAFE",),
    )  # fmt: skip
    model_signature: str | None = flag(
        None, values.choice("off", "warn", "require"),
        "Whether a model must be signed (OpenSSF model signing); default: what the manifest says.",
    )  # fmt: skip
    hf_token: tuple[str, ...] = flag(
        (), values.text_list("TOKEN", separator=None), "Token for the Hugging Face hub.",
        variables=("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), is_secret=True,
    )  # fmt: skip
    use_modelscope: bool = flag(
        False, values.switch(), "Take ORG/NAME for a model of ModelScope instead of Hugging Face.",
        variables=("VLLM_USE_MODELSCOPE",),
    )  # fmt: skip
    download_bandwidth: int | None = flag(
        None, values.byte_size(1024), "Bytes per second that downloads may take in all; default: no limit."
    )
    download_connections: int = flag(8, values.integer(1, 64), "Connections of downloads at once.")
    download_stall_timeout: float = flag(
        30.0, values.number(0, 3600), "Seconds without a byte after which a connection is given up and made again."
    )
