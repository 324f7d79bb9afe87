"""How many workers a GPU takes, for `per_gpu=auto`: tried for seconds, nothing is kept.

Free memory is asked of the device, so that CUDA contexts and caches count too. What one more worker takes is what the
device had less of when several ran; for larger configurations, what it had less of when they ran alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from orchestrator import probe
from orchestrator.executors import Slot
from orchestrator.executors.local import num_cores, visible_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.forkserver import ForkServer
    from orchestrator.probe import Load
    from orchestrator.study import Study

NUM_DRAWN = 16  # configurations whose models are built, to find small and large ones
SIZE_SECONDS = 5.0
LOAD_SECONDS = 20.0  # that trainings at once have at most
SHARE = 0.9  # of the memory that is free without any worker, which the peaks of all may come to
GAIN = 1.1  # times the epochs a second, for which more workers are worth their memory


def settled(study: Study, num_useful: int, server: ForkServer | None, note: Callable[[str], None]) -> Study:
    """The study with a number for `per_gpu`, found by a probe where it is `auto`; `note` is told how.

    All GPUs are taken to be like the first. It is one where no more are useful or have a core, where a trial takes
    several GPUs, and where there is no GPU.
    """
    if study.budget.per_gpu:
        return study
    gpus, count = visible_gpus(str(study.fixed.get("device", "auto"))), 1
    if gpus and int(study.fixed.get("devices", 1)) == 1:
        most = min(num_cores() // len(gpus), math.ceil(num_useful / len(gpus)))
        if most > 1:
            note("per_gpu=auto: trying how many workers a GPU takes")
            count, how = probed(study, gpus, most, server)
            note(f"per_gpu=auto: {count} worker(s) a GPU; {how}")
    return study.model_copy(update={"budget": study.budget.model_copy(update={"per_gpu": count})})


def probed(study: Study, gpus: Sequence[str], most: int, server: ForkServer | None) -> tuple[int, str]:
    """How many workers the first of some GPUs takes, `most` at most, and on what figures; no GPU is the CPU."""
    configs = [study.config(params) for params in probe.drawn_of(study, NUM_DRAWN)]
    part = probe.part_of(study, configs)
    if part.limit:
        configs = [{**config, "limit": part.limit} for config in configs]

    def tried(config: Mapping[str, Any], count: int) -> Load:
        threads = max(1, num_cores() // (count * max(1, len(gpus))))
        slot = Slot(name="probe", threads=threads, devices=tuple(gpus[:1]))
        return probe.load(study.recipe, config, slot, count, server, LOAD_SECONDS)

    sizes = probe.sizes(study.recipe, configs, Slot(name="probe", threads=num_cores()), server, SIZE_SECONDS)
    typical, *others = by_size(configs, sizes)
    alone = tried(typical, 1)
    if alone.complaint:
        return 1, f"a configuration could not be tried: {alone.complaint}"
    least_free = min([alone.free_bytes, *(tried(config, 1).free_bytes for config in others)])
    more_bytes = alone.free_bytes - least_free + part.missing_bytes
    return choose(alone, lambda count: tried(typical, count), more_bytes=more_bytes, most=most)


def by_size(configs: Sequence[dict[str, Any]], sizes: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """The configuration of the middle model, then those of the largest and the smallest, each once.

    Without sizes, the order is that of the draws.
    """
    places = [place for place, size in enumerate(sizes) if size] or list(range(len(configs)))
    if any(sizes):
        places.sort(key=lambda place: (sizes[place].get("flops", 0), sizes[place]["num_parameters"]))
    return [configs[place] for place in dict.fromkeys((places[len(places) // 2], places[-1], places[0]))]


def choose(alone: Load, tried: Callable[[int], Load], *, more_bytes: float, most: int) -> tuple[int, str]:
    """Double the workers while all of them find room and together get faster by a tenth; say on what figures.

    `more_bytes` is what the largest configuration takes beyond the one that is `tried`.
    """
    count, told = alone, [_told(alone)]
    while count.count < most:
        load = tried(min(2 * count.count, most))
        if load.complaint:
            told.append(f"{load.count} at once: {load.complaint}")
            break
        told.append(_told(load))
        most = min(most, room(alone, load, more_bytes))
        if load.epochs_per_second < GAIN * count.epochs_per_second:
            break
        if load.count > most:
            return max(count.count, most), f"{', '.join(told)}; there is room for {most}"
        count = load
    return min(count.count, most), ", ".join(told)


def room(alone: Load, load: Load, more_bytes: float) -> int:
    """For how many workers of the largest configuration a device has memory; at least for one."""
    each = max(0.0, (alone.free_bytes - load.free_bytes) / (load.count - 1))
    whole = alone.free_bytes + each
    return max(1, int(SHARE * whole / max(1.0, each + more_bytes)))


def _told(load: Load) -> str:
    return f"{load.count} at once: {load.epochs_per_second:.3g} epochs a second"
