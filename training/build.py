"""Builds the tokenizer, the built-in model and its adapters from nothing: ``python -m training.build``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.adapters import ADAPTER_RECIPES, build_adapter
from training.card import update_record
from training.corpus import Encoder
from training.model import Llama, ModelShape, hf_config, load_weights, save_weights, write_json
from training.tasks import TASKS
from training.tokenizer import END_OF_TEXT, TURN_END, load_template, tokenizer_config, train_tokenizer
from training.train import Progress, Recipe, train
from vllm_mxext.builtin import model_path

BASE_RECIPE = Recipe()
"""What the shipped weights were trained with."""


def build_tokenizer(folder: Path, seed: int) -> None:
    """Train the tokenizer and write its two files next to the chat template."""
    tokenizer = train_tokenizer(load_template(folder / "chat_template.jinja"), seed)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config())


def load_encoder(folder: Path) -> Encoder:
    """Open the tokenizer and chat template of a model folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Encoder(tokenizer, load_template(folder / "chat_template.jinja"))


def make_model(encoder: Encoder, seed: int) -> Llama:
    """Make an untrained model for the tokenizer."""
    shape = replace(ModelShape(), vocab_size=encoder.tokenizer.get_vocab_size())
    return Llama(shape, torch.Generator().manual_seed(seed))


def export_model(model: Llama, encoder: Encoder, folder: Path) -> None:
    """Write weights and configuration in the Hugging Face layout."""
    end_ids = [encoder.token_id(TURN_END), encoder.token_id(END_OF_TEXT)]
    write_json(folder / "config.json", hf_config(model.shape, end_ids, encoder.pad_id))
    generation = {"eos_token_id": end_ids, "pad_token_id": encoder.pad_id, "do_sample": False}
    write_json(folder / "generation_config.json", generation)
    save_weights(model, folder / "model.safetensors")


def build_base(folder: Path, scratch: Path) -> None:
    """Train the base model, write it to ``folder`` and note how long it took."""
    encoder = load_encoder(folder)
    model = make_model(encoder, BASE_RECIPE.seed)
    seconds = train(model, TASKS, encoder, BASE_RECIPE, Progress(scratch / "base.pt"))
    export_model(model, encoder, folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    update_record("base", {"parameters": parameters, **record_entry(BASE_RECIPE, seconds)})


def build_adapters(folder: Path, scratch: Path, names: Sequence[str] = tuple(ADAPTER_RECIPES)) -> None:
    """Train adapters on the finished base model and note how long each took."""
    encoder = load_encoder(folder)
    for name in names:
        recipe = ADAPTER_RECIPES[name]
        model = make_model(encoder, BASE_RECIPE.seed)
        load_weights(model, folder / "model.safetensors")
        seconds = build_adapter(name, model, encoder, folder.parent / "adapters" / name, scratch)
        update_record(name, record_entry(recipe, seconds))


def record_entry(recipe: Recipe, seconds: float) -> dict[str, object]:
    """Describe a finished training run."""
    return {
        "steps": recipe.steps,
        "tokens_per_step": recipe.shards * recipe.rows * recipe.length,
        "seconds": round(seconds),
        "threads": recipe.shards,
        "cpu_count": os.cpu_count(),
        "load_average": round(os.getloadavg()[1], 1),
        "torch": torch.__version__,
    }


def main() -> None:
    """Build what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        default=["tokenizer", "base", "adapters"],
        help="tokenizer, base, adapters, or one adapter by name",
    )
    parser.add_argument("--scratch", type=Path, default=Path("build/training"), help="folder for checkpoints")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # parallel work is shared out by training.train.Shards
    folder = model_path()
    if "tokenizer" in arguments.parts:
        build_tokenizer(folder, BASE_RECIPE.seed)
    if "base" in arguments.parts:
        build_base(folder, arguments.scratch)
    if "adapters" in arguments.parts:
        build_adapters(folder, arguments.scratch)
    if single := [part for part in arguments.parts if part in ADAPTER_RECIPES]:
        build_adapters(folder, arguments.scratch, single)


if __name__ == "__main__":
    main()
