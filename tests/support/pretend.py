"""A CUDA device that is not there: tensors that say `cuda:0` and compute on the CPU, with a log of what would cost.

    python -m tests.support.pretend OUT.json [NAME ...]

Every method of the tables makes a step on it. OUT.json then holds, for each: the losses on the CPU and on the device,
the mixes of devices that CUDA would refuse, where the host waits for the device (a value read, a blocking copy, a shape
that depends on values), and how many kernels are launched. It changes torch for its whole process, so it runs in one of
its own. It sees forward and backward alone: not the optimiser's step, nor teachers that follow, callbacks and autocast. Nor
faults of CUDA's kernels, of cuDNN, of memory and of NCCL (`make gpu` looks at all of these).

Autograd asks a device for a guard; `guard.cpp` registers one that does nothing, and is compiled against the headers of
the torch that is installed.
"""

import ctypes
import functools
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GUARD = Path(__file__).with_name("guard.cpp")
DEVICE = torch.device("cuda:0")
WAITS = frozenset(
    [
        "_local_scalar_dense",
        "nonzero",
        "nonzero_static",
        "masked_select",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "equal",
        "is_nonzero",
        "bincount",
        "multinomial",
        "linalg_svd",
        "_linalg_svd",
        "linalg_eigh",
        "_linalg_eigh",
        "linalg_eig",
        "linalg_cholesky",
        "cholesky",
        "linalg_inv",
        "inverse",
    ]
)
"""Operations for whose result, or its shape, the host waits."""
FREE = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "slice",
        "select",
        "t",
        "transpose",
        "permute",
        "expand",
        "squeeze",
        "unsqueeze",
        "detach",
        "alias",
        "as_strided",
        "split",
        "split_with_sizes",
        "unbind",
        "diagonal",
        "unfold",
        "lift_fresh",
        "_reshape_alias",
        "movedim",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "is_same_size",
        "is_pinned",
        "_local_scalar_dense",
    ]
)
"""Operations that launch no kernel."""
MIXABLE = frozenset(["index", "index_put", "index_put_", "_index_put_impl_", "copy_", "_to_copy", "_copy_from", "set_"])
"""Operations that take tensors of the CPU beside those of the device."""
STRICT = frozenset(
    [
        "cat",
        "stack",
        "gather",
        "scatter",
        "scatter_add",
        "scatter_add_",
        "index_select",
        "index_add",
        "mm",
        "addmm",
        "bmm",
        "_foreach_lerp_",
    ]
)
"""Operations that refuse even numbers on the CPU; others take them as scalars."""


class Log:
    """What happened since it was cleared."""

    def __init__(self) -> None:
        self.mixes, self.waits, self.kernels = Counter(), Counter(), 0

    def clear(self) -> None:
        self.__init__()

    def mix(self, what: str) -> None:
        self.mixes[f"{what} at {place()}"] += 1

    def wait(self, what: str) -> None:
        self.waits[f"{what} at {place()}"] += 1


LOG = Log()


def place() -> str:
    """The innermost line of the product that is running; else of what it calls."""
    frame, other = sys._getframe(2), "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if "/manyviews/" in name and "/tests/" not in name and "site-packages" not in name:
            return f"{name.rpartition('/ssl/')[2]}:{frame.f_lineno}"
        if other == "?" and "site-packages/" in name and "_python_dispatch" not in name and "/_ops.py" not in name:
            other = f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return other


class Pretended(torch.Tensor):
    """A tensor that says it lies on the device, around one on the CPU that has its values."""

    @staticmethod
    def __new__(cls, inner):
        if isinstance(inner, Pretended):
            return inner
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=DEVICE,
        )  # fmt: skip
        made.inner = inner.detach()
        return made

    def __repr__(self, *_, **__):
        return f"Pretended({self.inner!r})"

    def __format__(self, spec):
        return format(self.inner, spec)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = Pretended(self.inner.clone()).requires_grad_(self.requires_grad)
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def tolist(self):
        LOG.wait("tolist")
        return self.inner.tolist()

    def numpy(self, *_, **__):
        LOG.mix("numpy of a tensor of the device")
        return self.inner.numpy()

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


class Watch(TorchDispatchMode):
    """Within it every operation goes through `run`, those that make tensors included."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


def run(operation, args, kwargs):
    """An operation on the CPU, logged as what it would be on the device."""
    name = operation._schema.name.split("::")[1]
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, Pretended)]
    here = [each for each in tensors if not isinstance(each, Pretended)]
    asked = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    on_device = asked == "cuda" or (bool(there) and asked is None)
    if name == "_to_copy" and asked is not None and (asked == "cuda") == bool(here) and not kwargs.get("non_blocking"):
        LOG.wait("blocking copy")
    elif name == "copy_" and there and here:
        on_device = isinstance(args[0], Pretended)
        if not (len(args) > 2 and args[2]):
            LOG.wait("blocking copy")
    elif there and name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        _look_at_index(name, args)
    elif there and name in WAITS:
        LOG.wait(name)
    elif there and name == "repeat_interleave" and kwargs.get("output_size") is None:
        LOG.wait("repeat_interleave without output_size")
    if there and name not in MIXABLE and [each for each in here if each.ndim or name in STRICT]:
        LOG.mix(name)
    if kwargs.get("generator") is not None and asked == "cuda":
        LOG.mix(f"{name} by a generator of the CPU")
    LOG.kernels += on_device and name not in FREE
    on_cpu = {**kwargs, **({"device": torch.device("cpu")} if asked == "cuda" else {})}
    if on_cpu.get("pin_memory"):
        on_cpu["pin_memory"] = False
    with torch._C.DisableTorchFunctionSubclass():
        out = operation(*tree_map(_inner, args), **tree_map(_inner, on_cpu))
    written = [each for each in operation._schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    if written and operation._schema.returns:  # what was given comes back
        if name.endswith("_") and isinstance(args[0], torch.Tensor):
            return args[0]
        outs = [kwargs[each.name] for each in written if each.is_out and kwargs.get(each.name) is not None]
        if outs:
            return outs[0] if len(outs) == 1 else tuple(outs)
    return tree_map(lambda each: Pretended(each) if isinstance(each, torch.Tensor) else each, out) if on_device else out


def _look_at_index(name, args):
    given = [each for each in args[1] if isinstance(each, torch.Tensor)]
    if not isinstance(args[0], Pretended):
        LOG.mix(f"{name} of a tensor of the CPU")
    elif any(not isinstance(each, Pretended) for each in given):
        LOG.wait(f"{name} by numbers of the CPU")
    filled = name != "index" and args[2].numel() == 1
    if any(each.dtype in (torch.bool, torch.uint8) for each in given) and not filled:
        LOG.wait(f"{name} by a mask")
    if name != "index" and not isinstance(args[2], Pretended) and args[2].ndim:
        LOG.mix(f"{name} of values on the CPU")


def _inner(value):
    return value.inner if isinstance(value, Pretended) else value


def _makes(original, of_tensor=False):
    """`torch.tensor` and its like, which do not go through the dispatcher."""
    plain = torch.tensor

    @functools.wraps(original)
    def made(*args, **kwargs):
        device, data = kwargs.pop("device", None), args[of_tensor]
        on_device = (
            torch.device(device).type == "cuda" if device is not None else of_tensor and isinstance(args[0], Pretended)
        )
        if of_tensor and kwargs.get("dtype") is None:
            kwargs["dtype"] = args[0].dtype
        if isinstance(data, torch.Tensor):
            return data.to(DEVICE) if on_device else data
        if isinstance(data, list | tuple) and any(isinstance(each, Pretended) for each in data):
            LOG.wait("a list of the device's scalars")
            data = [_inner(each).item() if isinstance(each, Pretended) else each for each in data]
        found = plain(data, **kwargs)
        if not on_device:
            return found
        LOG.wait("numbers to the device")
        return Pretended(found.detach()).requires_grad_(found.requires_grad)

    return made


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """The textbook's, in the place of a choice between kernels that asks the device."""
    scores = (q * (scale or q.shape[-1] ** -0.5)) @ k.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        is_mask = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_mask else scores + attn_mask
    return torch.dropout(scores.softmax(-1), dropout_p, True) @ v


def install() -> None:
    """Makes torch of this process believe in the device."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "guard.so")
        include = [f"-I{path}" for path in cpp_extension.include_paths()]
        torch_lib = Path(torch.__file__).parent / "lib"
        link = [f"-L{torch_lib}", "-lc10", "-ltorch_cpu"]
        subprocess.run(
            ["g++", "-shared", "-fPIC", "-std=c++20", *include, str(GUARD), "-o", str(library), *link], check=True
        )
        ctypes.CDLL(str(library)).install()
    facts = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "set_device": None, "synchronize": None, "empty_cache": None, "is_bf16_supported": True,
        "is_current_stream_capturing": False, "get_device_name": "pretended",
    }  # fmt: skip
    for name, value in facts.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    torch.backends.cudnn.enabled = False
    torch.autograd.set_multithreading_enabled(False)
    sys.modules["torch.optim.optimizer"]._foreach_supported_types.append(Pretended)
    torch.tensor, torch.as_tensor = _makes(torch.tensor), _makes(torch.as_tensor)
    torch.Tensor.new_tensor = _makes(torch.Tensor.new_tensor, True)
    torch.nn.functional.scaled_dot_product_attention = attention


def on_device(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its parameters and buffers on the device, shared ones still shared."""
    memo: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                made = memo.get(id(value))
                made = (
                    torch.nn.Parameter(Pretended(value.detach().clone()), value.requires_grad) if made is None else made
                )
                part._parameters[name] = memo[id(value)] = made
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = memo.setdefault(id(value), Pretended(value.detach().clone()))
    return module


def step(method, batch) -> float:
    """Forward and backward of a batch; the loss."""
    torch.manual_seed(3)
    loss = method.training_step(batch, 0)["loss"]
    if loss.requires_grad:
        loss.backward()
    return float(_inner(loss.detach()))


def tried(trial) -> dict:
    """What a method does on the device, and its loss on the CPU."""
    from tests.support.every import moved

    batch = trial.batches()[0]
    found = {"cpu": step(trial.make().train(), batch)}
    method = on_device(trial.make().train())
    batch = moved(batch, Pretended)
    LOG.clear()
    with Watch():
        found["device"] = step(method, batch)
    return {**found, "mixes": dict(LOG.mixes), "waits": dict(LOG.waits), "kernels": LOG.kernels}


def main() -> None:
    out, *names = sys.argv[1:]
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from tests.support.every import TRIALS, VIDEO_METHODS  # Lightning asks for devices when it is imported

    install()
    found = {}
    for name, trial in {**TRIALS, **VIDEO_METHODS}.items():
        if names and name not in names:
            continue
        try:
            found[name] = tried(trial)
        except Exception as error:  # whatever a method dies of on the device
            found[name] = {"error": f"{type(error).__name__}: {error} at {_last(error)}"}
    Path(out).write_text(json.dumps(found, indent=1))


def _last(error: BaseException) -> str:
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


if __name__ == "__main__":
    main()
