"""Which executor a study asks for, and how a trial's configuration is placed on one of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.executors.inline import InlineExecutor
from orchestrator.executors.local import LocalExecutor, num_cores, plan_slots, visible_gpus
from recipes.device import choose_device

if TYPE_CHECKING:
    from orchestrator.depot import Depot
    from orchestrator.executors import Executor, Slot
    from orchestrator.forkserver import ForkServer
    from orchestrator.settings import Settings
    from orchestrator.study import Study


def start_executor(
    study: Study, num_useful: int, settings: Settings, server: ForkServer | None, depot: Depot | None = None
) -> Executor:
    """Start the workers of a study, no more than are useful; local ones are forked from `server` if there is one.

    Those on a cluster bring what they write to `depot`, if there is one.

    Raises:
        UnavailableError: they do not start.
    """
    budget, logs = study.budget, settings.logs / study.name
    device, num_devices = str(study.fixed.get("device", "auto")), int(study.fixed.get("devices", 1))
    match budget.executor:
        case "inline":
            return InlineExecutor(threads=num_cores())
        case "ray":
            from orchestrator.executors.ray_cluster import RayExecutor  # Ray need not be installed

            return RayExecutor(
                budget.address,
                budget.workers,
                home=settings.home,
                logs=logs,
                num_useful=num_useful,
                device=device,
                num_devices=num_devices,
                depot=depot,
            )
        case "local":
            slots = plan_slots(
                budget.workers,
                visible_gpus(device),
                num_useful=num_useful,
                num_devices=num_devices,
                per_gpu=budget.per_gpu,
            )
            return LocalExecutor(slots, logs, server, exports=budget.num_exports > 0)


def placed(config: dict[str, Any], slot: Slot) -> dict[str, Any]:
    """The configuration as a slot runs it: a worker sees no GPUs but its own."""
    return {**config, "device": "cuda"} if slot.devices and "device" in config else config


def device_of(config: dict[str, Any], slot: Slot) -> str:
    """What a trial trains on, by the name that the whole machine knows it by."""
    if slot.devices:
        return f"cuda:{','.join(slot.devices)}"
    return "cpu" if slot.host else choose_device(str(config.get("device", "auto"))).type
