"""Checkpoints that a kill at any moment cannot break, written and read by any number of processes.

    copy to the host -> write to a hidden directory -> fsync every file -> marker with their sizes -> rename -> prune
    local rows of every process -> NAME-00000-of-00002.safetensors + where they belong -> `Pieces` -> rows of a reader

A checkpoint is `step-00000120/` with the tensors of model and optimiser (a file per process), state.json and the marker
COMPLETE. A directory without a marker was never finished and counts for nothing; one whose files do not have the sizes
the marker states was damaged later and is an error. Training goes on while a background thread writes.

Every tensor is cut along its first dimension at most, as FSDP2 does. Nothing is pickled: torch's own distributed
checkpoints (DCP) keep a pickle beside the data, which Plait never reads.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from plait.places import sync
from plait.training.parallel import World, is_quantised

_MARKER = "COMPLETE"


@dataclass(slots=True)
class Position:
    """How far a run is. The order of samples and every random number follow from it and the seed.

    Attributes:
        stage: index of the current stage.
        step: steps done in it.
        total: steps done in the run.
        seconds: time trained so far, over all starts.
        seed: of the run; a checkpoint continues under no other.
        loss_scale, good_steps: of float16 runs, see `plait.training.optim.LossScale`.
        score: mean since the last checkpoint of the metric that `Options.best` names; lower is better.
    """

    stage: int = 0
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    seed: int = 0
    loss_scale: float = 65536.0
    good_steps: int = 0
    score: float | None = None


class CheckpointStore:
    """The checkpoints of one run: the last `keep_last`, and the one with the lowest score where scores are given.

    Every process of `world` calls every method, in the same order.

    Args:
        directory: holds `step-00000120/` and the like; made when the first checkpoint is written.
        keep_last: newest checkpoints that stay, at least 1.
        world: processes that write together; one without it.
        is_async: write in a background thread. `wait`, which the next `save` calls too, finishes it and raises
            its error.

    Raises:
        ValueError: for `keep_last` below 1.

    Example:
        >>> store = CheckpointStore(Path("runs/a/checkpoints"))
        >>> store.save(model, torch.optim.AdamW(model.parameters()), Position(step=10, total=10))
        >>> store.load_model(store.latest(), model)
    """

    def __init__(
        self, directory: Path, keep_last: int = 2, *, world: World | None = None, is_async: bool = False
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"expected keep_last of at least 1, got {keep_last}; a run needs one checkpoint to resume")
        self.directory = directory
        self.keep_last = keep_last
        self.world = world or World()
        self.is_async = is_async
        self._writing: _Writing | None = None

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self._named() if (path / _MARKER).exists())

    def _named(self, prefix: str = "") -> list[Path]:
        """Directories with the name of a checkpoint; what else somebody keeps here is nobody's business."""
        named = re.compile(rf"{re.escape(prefix)}step-\d{{8,}}")
        return [path for path in self.directory.glob(f"{prefix}step-*") if named.fullmatch(path.name)]

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lives, whether it is there or not."""
        return self.directory / f"step-{step:08d}"

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, position: Position) -> Path:
        """Begin a checkpoint, unless this step has one; without `is_async` also finish it.

        What is stored is copied to the host before this returns, so training may go on.

        Args:
            model: its parameters and persistent buffers are stored, see `tensors_of`.
            optimizer: None at the end of a stage, where the next one builds its own.
            position: `position.total` names the checkpoint.

        Returns:
            Where the checkpoint is, or will be once it is written.

        Raises:
            OSError: for a failed write, this one or the one before (disk full); older checkpoints stay intact.
        """
        self.wait()
        final = self.path(position.total)
        if (final / _MARKER).exists():
            return final
        # the leading dot keeps it out of `steps`, which only looks at "step-*"
        unfinished = self.directory / f".writing-{final.name}"
        rank, size = self.world.rank, self.world.size
        if self.world.is_main:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self._named(".writing-"):  # of a process that was killed
                shutil.rmtree(path)
            unfinished.mkdir()
        # no process may write before the directory is there
        self.world.barrier()
        tensors: dict[str, dict[str, Tensor]] = {"model": tensors_of(model)}
        numbers: dict[str, dict[str, Any]] = {}
        if optimizer is not None:
            tensors["optimizer"] = {}
            for name, parameter in model.named_parameters():
                for field, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        tensors["optimizer"][f"{name}/{field}"] = value
                    else:
                        numbers.setdefault(name, {})[field] = value
        # copied now: the next step changes the weights while the thread still writes
        pieces = {
            kind: {name: one for name, x in own.items() if (one := piece_of(x, self.world.is_main)) is not None}
            for kind, own in tensors.items()
        }
        state = json.dumps({"position": asdict(position), "optimizer": numbers, "processes": size})

        # no collective in here: the thread runs beside the training, whose collectives must keep their order
        def write() -> None:
            for kind, own in pieces.items():
                path = unfinished / f"{kind}-{rank:05d}-of-{size:05d}.safetensors"
                places = {name: [piece.start, *piece.shape] for name, piece in own.items()}
                save_file({name: piece.rows for name, piece in own.items()}, str(path), {"places": json.dumps(places)})
                sync(path)
            if rank == 0:
                (unfinished / "state.json").write_text(state)
                sync(unfinished / "state.json")

        self._writing = _Writing(unfinished, final, write)
        if not self.is_async:
            self.wait()
        return final

    def failed(self) -> bool:
        """Whether the write under way has failed in this process."""
        return self._writing is not None and self._writing.error is not None

    def is_written(self) -> bool:
        """Whether this process's part of the write under way is on the disk."""
        return self._writing is not None and not self._writing.thread.is_alive()

    def wait(self) -> None:
        """Finish the write under way: mark, rename and prune, in that order.

        Raises:
            OSError: in every process when the write failed in one.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.thread.join()
        error = writing.error
        # on the CPU: gloo carries it, and no GPU work is waited for
        failures = self.world.mean([float(error is not None)], torch.device("cpu"))[0]
        if failures:
            if self.world.is_main:
                shutil.rmtree(writing.unfinished, ignore_errors=True)
            raise OSError(
                f"expected to write a checkpoint in {self.directory}, got: "
                f"{' '.join(str(error or 'a failure in another process').split())}; "
                "check the free space and run again, earlier checkpoints are intact"
            ) from error
        if self.world.is_main:  # every process has written its part
            unfinished = writing.unfinished
            # sizes instead of hashes: a cut-off file is what a full disk or a power cut leaves, and reading all
            # would take minutes
            sizes = {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())}
            (unfinished / _MARKER).write_text(json.dumps(sizes))
            sync(unfinished / _MARKER)
            sync(unfinished)
            # atomic within one file system, so readers see all of a checkpoint or nothing
            unfinished.rename(writing.final)
            sync(self.directory)
            steps = self.steps()
            scores = {step: score for step in steps if (score := self.position(step).score) is not None}
            best = min(scores, key=lambda step: scores[step]) if scores else None
            for step in steps[: -self.keep_last]:
                # only now: older ones go when a newer one is whole
                if step != best:
                    shutil.rmtree(self.path(step))
        # no process may look for the newest checkpoint before it has its name
        self.world.barrier()

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, None when there is none.

        Raises:
            ValueError: when a file of it is missing or has another size than its marker states.
        """
        steps = self.steps()
        if not steps:
            return None
        path = self.path(steps[-1])
        for name, size in json.loads((path / _MARKER).read_text()).items():
            found = (path / name).stat().st_size if (path / name).exists() else None
            if found != size:
                got = "no file" if found is None else f"{found} bytes"
                raise ValueError(
                    f"expected {size} bytes in {path / name}, got {got}; remove {path} to continue from an older one"
                )
        return steps[-1]

    def position(self, step: int) -> Position:
        """The `Position` stored with the checkpoint of `step`."""
        return Position(**json.loads((self.path(step) / "state.json").read_text())["position"])

    def load_model(self, step: int, model: nn.Module) -> None:
        """Load weights and buffers of a checkpoint into `model`, in place, whole or sharded.

        Args:
            step: of a finished checkpoint, see `steps`.
            model: has the same names and shapes; its devices and dtypes stay.

        Raises:
            ValueError: when the model has other names or shapes; nothing is loaded then.
        """
        targets = tensors_of(model)
        with Pieces(self.path(step), "model") as pieces, torch.no_grad():
            shapes = {key: tuple(value.shape) for key, value in targets.items()}
            wrong = sorted(key for key in shapes.keys() | pieces.shapes if shapes.get(key) != pieces.shapes.get(key))
            if wrong:
                first = wrong[0]
                raise ValueError(
                    f"expected {self.path(step)} to hold this model, got other tensors: {first} is "
                    f"{pieces.shapes.get(first, 'absent')} there and {shapes.get(first, 'absent')} here "
                    f"({len(wrong)} differ); train another model in another run directory"
                )
            for key, value in targets.items():
                value.copy_(pieces.read(key, value))

    def load_optimizer(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Load the optimiser's state in place, matched by the names of the parameters.

        Args:
            step: of a finished checkpoint.
            model: gives parameters their names.
            optimizer: over parameters of `model`; groups and rates stay as they are.

        Returns:
            False at the border between two stages, where no state is stored.
        """
        numbers = json.loads((self.path(step) / "state.json").read_text())["optimizer"]
        parameters = dict(model.named_parameters())
        with Pieces(self.path(step), "optimizer") as pieces:
            for key in pieces.shapes:
                # fields have no "/" in their names and parameters have dots, so the last one divides
                name, _, field = key.rpartition("/")
                parameter = parameters[name]
                value = pieces.read(key, parameter)
                on_host = field == "step"  # where reading it waits for no device
                optimizer.state[parameter][field] = value if on_host else value.to(parameter.device)
            for name, fields in numbers.items():
                optimizer.state[parameters[name]].update(fields)
            return bool(pieces.shapes or numbers)

    def clear(self) -> None:
        """Remove every checkpoint, whole or not; what else somebody keeps in the directory stays."""
        for path in (*self._named(), *self._named(".writing-")):
            shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # absent, or something else is in it
            self.directory.rmdir()


class _Writing:
    """One process's part of a checkpoint, written by a thread that is not waited for at exit."""

    def __init__(self, unfinished: Path, final: Path, write: Callable[[], None]) -> None:
        self.unfinished, self.final = unfinished, final
        self.error: Exception | None = None

        def run() -> None:
            try:
                write()
            except (OSError, SafetensorError, RuntimeError) as error:
                # raised by `wait`, in every process
                self.error = error

        self.thread = threading.Thread(target=run, name="plait-checkpoint", daemon=True)
        self.thread.start()


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied ones once, under their first name.

    Args:
        module: may hold quantised layers, which are left out: they are frozen, and are made of their model
            directory again when a run goes on.

    Returns:
        Name -> the tensor itself, no copy.
    """
    seen: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    left_out = tuple(f"{name}." for name, one in module.named_modules() if is_quantised(one))
    # safetensors refuses tensors that share memory, so a tied weight must not be stored twice
    return {
        name: value
        for name, value in state.items()
        if seen.setdefault(id(value), name) == name and not name.startswith(left_out)
    }


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` .. `start + len(rows)` of a tensor of `shape`, on the CPU; a 0-dim tensor is one piece.

    Attributes:
        rows: (count, ...), contiguous, a copy.
        start: of the first of them in the whole tensor.
        shape: of the whole tensor.
    """

    rows: Tensor
    start: int
    shape: tuple[int, ...]


def piece_of(tensor: Tensor, is_main: bool) -> Piece | None:
    """A copy of what this process has to store of `tensor`, on the host.

    Returns:
        Its shard of a spread tensor; all of any other in the main process; None where there is nothing to
        store.

    Raises:
        ValueError: as `first_row`.
    """
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return Piece(tensor.to("cpu", copy=True).contiguous(), 0, tuple(tensor.shape)) if is_main else None
    rows = tensor.to_local()
    start = first_row(tensor)
    # a tensor without rows leaves a piece in one file, so that its name and shape are known when it is
    # read
    is_stored = rows.numel() > 0 or (is_main and tensor.numel() == 0)
    return Piece(rows.to("cpu", copy=True).contiguous(), start, tuple(tensor.shape)) if is_stored else None


def first_row(tensor: DTensor) -> int:
    """Where this process's rows start in the whole tensor.

    Raises:
        ValueError: for a tensor that is not cut along its first dimension alone.
    """
    if len(tensor.placements) != 1 or tensor.placements[0] != Shard(0):
        raise ValueError(f"expected tensors cut along the first dimension, got {tensor.placements}")
    # torch gives every process ceil(rows / processes) of them; the last ones may get fewer, or none
    size, count = -(-tensor.shape[0] // tensor.device_mesh.size()), tensor.shape[0]
    return min(count, tensor.device_mesh.get_local_rank() * size)


class Pieces:
    """All files `NAME-*-of-*.safetensors` of a directory, opened together; use as a context.

    Files are mapped: nothing is loaded before it is asked for. They may come from another number of processes.

    Attributes:
        shapes: name -> shape of the whole tensor.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        self._stack = ExitStack()
        for path in sorted(directory.glob(f"{name}-*-of-*.safetensors")):
            file = self._stack.enter_context(safe_open(str(path), "pt"))
            for key, (start, *shape) in json.loads((file.metadata() or {})["places"]).items():
                self.shapes[key] = tuple(shape)
                self._where[key].append((start, file))

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """All of a tensor, or this process's part of it.

        Args:
            name: a key of `shapes`.
            like: a tensor that is spread over processes: the result is spread the same way. Others ask for all
                of it.

        Returns:
            A tensor on the CPU, or a DTensor on the device of `like`.
        """
        if not isinstance(like, DTensor) or self.shapes[name] != tuple(like.shape):
            return self._rows(name, 0, None)
        rows, start = like.to_local(), first_row(like)
        mine = self._rows(name, start, start + len(rows)).to(rows.device)
        return DTensor.from_local(
            mine, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def _rows(self, name: str, start: int, stop: int | None) -> Tensor:
        """Rows `start` .. `stop` of a tensor (None: to the end), put together from whatever files hold them."""
        shape, pieces = self.shapes[name], sorted(self._where[name], key=lambda one: one[0])
        # a single number has no rows to cut
        if not shape:
            return pieces[0][1].get_tensor(name)
        stop = shape[0] if stop is None else stop
        parts = []
        for first, file in pieces:
            rows = file.get_slice(name)
            low, high = max(start, first), min(stop, first + rows.get_shape()[0])
            # a tensor of no rows lies in one file: its empty slice has the right shape and dtype
            if low < high or len(pieces) == 1:
                parts.append(rows[low - first : max(low, high) - first])
        return torch.cat(parts) if parts else pieces[0][1].get_slice(name)[:0]
