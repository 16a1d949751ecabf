"""A device that is registered from Python: its kernels are LibTorch's for the CPU, over tensors that only this module
knows. Imported by needle's Python plug-in (plugins/python.cpp) with NEEDLE_PYTHON_MODULE=paper_device."""
import os

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("paper")
KEY = "PrivateUse1"
aten = torch.ops.aten
kernels = 0
REPORT = open(os.environ["PAPER_REPORT"], "w", 1, encoding="utf-8") if "PAPER_REPORT" in os.environ else None

held = {}  # storage of a wrapper -> its values; LibTorch copies wrappers, which share it


def wrap(values):
    """A tensor of the device: a shape, an empty storage and no memory of its own."""
    result = torch._C._acc.create_empty_tensor(tuple(values.shape), values.dtype)
    storage = result.untyped_storage()
    held[storage._cdata] = (StorageWeakRef(storage), values)
    if len(held) % 4096 == 0:
        for key in [key for key, (storage, _) in held.items() if storage.expired()]:
            del held[key]
    return result


def values_of(tensor):
    values = held[tensor.untyped_storage()._cdata][1]
    return values if values.shape == tensor.shape else values.reshape(tensor.shape)


def run(op, *args, **kwargs):
    global kernels
    kernels += 1
    if kernels % 1000 == 0 and REPORT:  # an embedded interpreter may end without a word
        REPORT.write(f"{op}\n")
    given = []  # wrappers with their values

    def unwrap(value):
        if isinstance(value, torch.Tensor) and value.device.type == "paper":
            given.append((value, values_of(value)))
            return given[-1][1]
        if isinstance(value, (list, tuple)):
            return type(value)(unwrap(one) for one in value)
        if isinstance(value, torch.device) and value.type == "paper":
            return torch.device("cpu")
        return value

    def back(value):
        if isinstance(value, torch.Tensor):
            return next((wrapper for wrapper, values in given if values is value), None) if any(
                values is value for _, values in given) else wrap(value)
        if isinstance(value, (list, tuple)):
            return type(value)(back(one) for one in value)
        return value

    return back(op(*unwrap(args), **{key: unwrap(value) for key, value in kwargs.items()}))


def copy_from(source, target, non_blocking=False):
    pages = [values_of(one) if one.device.type == "paper" else one for one in (source, target)]
    pages[1].copy_(pages[0])
    return target


def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return wrap(torch.empty(size, dtype=dtype))


def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return wrap(torch.empty_strided(size, stride, dtype=dtype))


# Wrappers always look contiguous. A view of what is contiguous shares its memory; a view of a view may be a copy, which
# is enough here: those are only read.
def as_strided(self, size, stride, storage_offset=None):
    values = values_of(self).contiguous()
    return wrap(values.as_strided(size, stride, (storage_offset or 0) + values.storage_offset()))


FALLBACK = torch.library.Library("_", "IMPL")
FALLBACK.fallback(run, KEY)
LIBRARY = torch.library.Library("aten", "IMPL")
LIBRARY.impl("empty.memory_format", empty, KEY)
LIBRARY.impl("empty_strided", empty_strided, KEY)
LIBRARY.impl("_copy_from", copy_from, KEY)
LIBRARY.impl("_local_scalar_dense", lambda self: values_of(self).item(), KEY)
LIBRARY.impl("as_strided", as_strided, KEY)
LIBRARY.impl("view", lambda self, size: wrap(values_of(self).reshape(size)), KEY)
LIBRARY.impl("_reshape_alias", lambda self, size, stride: wrap(values_of(self).reshape(size)), KEY)
# These make an empty result and have it filled; the wrapper's shape is fixed.
for name in ("abs", "logical_and", "logical_or", "logical_not"):
    op = getattr(aten, name).default
    LIBRARY.impl(name, lambda *args, op=op: run(op, *args), KEY)

