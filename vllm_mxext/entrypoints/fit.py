"""`FitReport`: what an engine would take of this machine and how it would compute, without loading a weight."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vllm_mxext.config.memory_plan import MemoryPlan, plan_memory
from vllm_mxext.config.resolve import ResolvedConfig
from vllm_mxext.config.table import format_value
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.worker.device_memory import device_memory


@dataclass(frozen=True, slots=True)
class FitReport:
    """Whether a model fits, and what was chosen for it.

    Attributes:
        model: name that the model is served under.
        architecture: of the checkpoint.
        plan: how memory would be divided; None if the model does not fit.
        problem: why it does not fit and what to change; None if it does.
        kernels: name of the kernels that would compute.
        kernels_reason: why these.
        choices: what was looked up rather than given: name -> (value, where it comes from).
    """

    model: str
    architecture: str
    plan: MemoryPlan | None
    problem: str | None
    kernels: str
    kernels_reason: str
    choices: dict[str, tuple[str, str]]

    @property
    def fits(self) -> bool:
        """Whether the engine could be loaded now."""
        return self.plan is not None

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        plan: dict[str, Any] | None = None
        if self.plan is not None:
            totals = ("kv_cache_bytes", "total_bytes", "max_cached_tokens")
            plan = dataclasses.asdict(self.plan) | {name: getattr(self.plan, name) for name in totals}
        return {
            "model": self.model,
            "architecture": self.architecture,
            "fits": self.fits,
            "problem": self.problem,
            "memory": plan,
            "kernels": {"name": self.kernels, "reason": self.kernels_reason},
            "choices": {name: {"value": value, "reason": why} for name, (value, why) in self.choices.items()},
        }

    def __str__(self) -> str:
        """Returns the report for people."""
        lines = [f"{self.model} ({self.architecture})", "", "memory"]
        lines += [f"  {line}" for line in (self.plan.table().splitlines() if self.plan else [str(self.problem)])]
        lines += ["", "kernels", f"  {self.kernels}: {self.kernels_reason}", "", "looked up"]
        width = max(map(len, self.choices), default=0)
        lines += [f"  {name:<{width}}  {value}  ({why})" for name, (value, why) in self.choices.items()]
        return "\n".join(lines)


def fit_report(config: ResolvedConfig) -> FitReport:
    """Plans memory and chooses kernels for a configuration; nothing is loaded.

    Raises:
        ConfigError: the kernels that a variable names cannot be used.
    """
    model = config.engine.model
    plan, problem = None, None
    try:
        plan = plan_memory(config.engine, device_memory(config.engine.device.device))
    except ConfigError as error:
        problem = str(error)
    kernels, reason = _kernels(config)
    return FitReport(
        model=model.served_model_names[0] if model.served_model_names else str(model.path),
        architecture=model.spec.architecture,
        plan=plan,
        problem=problem,
        kernels=kernels,
        kernels_reason=reason,
        choices={name: (format_value(made.value), made.reason) for name, made in config.decisions.items()},
    )


def _kernels(config: ResolvedConfig) -> tuple[str, str]:
    if config.engine.device.device != "cpu":
        return "torch", f"the device is {config.engine.device.device}, for which there are no compiled kernels"
    from vllm_mxext.native.kernels.selection import describe_kernels  # noqa: PLC0415 - imports torch

    found = describe_kernels()
    name = str(found["selected"])
    if found["forced"]:
        return name, "the variable VLLM_MXEXT_CPU_ISA names it"
    if found["library"] is None:
        return name, "no compiled library is installed that this CPU runs"
    return name, f"the fastest that this CPU runs, of {', '.join(found['runnable'])}"
