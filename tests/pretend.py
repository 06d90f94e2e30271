"""A pretend GPU, for machines that have none: what is sent there stays in the CPU's memory, with a label on it.

    with pretend.gpu() as gpu:
        kit = msk.load("tiny", device="cuda")           # the real code, with the real numbers

Labels hang on storages, so views, parameters, gradients and what is set as `.data` have them too. What comes of labelled
tensors is labelled, in backward passes as well, and what CUDA refuses is refused: operands on two devices (but for numbers
without axes, where a kernel takes them), the CPU's generator for the GPU's numbers, `.numpy()`, pinning what is not on the
CPU, products of whole numbers. What is on its way by pinned memory, and was not waited for, may not be read on the CPU, nor
written there. `gpu.asked` counts operations, `gpu.waits` takes down what makes the CPU wait for the GPU.

What it cannot show: time, memory, kernels that are missing or round otherwise, and streams, which all are one here.
"""
from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CUDA, aten = torch.device("cpu"), torch.device("cuda", 0), torch.ops.aten
ACROSS = {aten.copy_, aten._to_copy, aten.is_same_size, aten.set_}                  # between devices, as they please
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
NUMBERS = {aten.where, aten.masked_fill, aten.masked_fill_, aten.fill_, aten._foreach_mul_, aten._foreach_add_}
ASKS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten._unique2, aten.unique_dim,
        aten.unique_consecutive, aten.bincount}                                     # a number or a size is wanted at once
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot, aten.convolution}
FULL = {aten._cdist_forward, aten._linalg_solve_ex, aten.linalg_inv_ex, aten._linalg_svd, aten.linalg_qr}
WATCHED = ASKS | INDEXED | PRODUCTS | FULL
RANDOM = "rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"
RANDOM_IN_PLACE = "normal_", "uniform_", "random_", "bernoulli_", "exponential_"
METHODS = ("to", "cpu", "cuda", "numpy", "__array__", "__deepcopy__", "pin_memory", "is_pinned", "new_tensor", "get_device",
           *RANDOM_IN_PLACE)
plain = SimpleNamespace(**{name: getattr(torch, name) for name in ("tensor", "as_tensor", "autocast", "Generator", *RANDOM)},
                        **{f"its_{name}": getattr(Tensor, name) for name in METHODS}, run=threading.Thread.run)
where = torch._C.TensorBase.device.__get__                                          # what torch itself says


class Refused(RuntimeError):
    """What CUDA would have refused."""


def on_gpu(x: Tensor) -> bool:
    return getattr(x.untyped_storage(), "on_gpu", False)


def label(x: Tensor, on: bool) -> Tensor:
    x.untyped_storage().on_gpu = on
    return x


class Card:
    """The GPU itself: what is on its way to it and from it, and what was waited for."""

    def __init__(self):
        self.asked = 0                                      # operations: what each costs a CPU does not depend on sizes
        self.waits: list[str] = []
        self.coming: list[weakref.ref] = []                 # storages on the CPU that are still to be written
        self.going: list[tuple[Tensor, Tensor]] = []        # pinned tensors that are still to be read, as they were

    def wait(self, why: str = "synchronize") -> None:
        """All that was asked is done."""
        self.waits.append(why)
        for storage in self.coming:
            if (storage := storage()) is not None:
                storage.coming = False
        changed = [x.shape for x, before in self.going if not torch.equal(x.nan_to_num(), before.nan_to_num())]
        self.coming, self.going = [], []
        if changed:
            raise Refused(f"pinned memory was written before the GPU had read it: {changed}")

    def cross(self, x: Tensor, to_gpu: bool, at_once: bool, **how) -> Tensor:
        """A copy on the other device."""
        made = label(plain.its_to(x, copy=True, **how), to_gpu)
        pinned = getattr(x.untyped_storage(), "pinned", False)
        with torch.no_grad():
            if at_once or to_gpu and not pinned:
                self.wait(f"{'to' if to_gpu else 'from'} the GPU, {list(x.shape)}")
            elif to_gpu:
                self.going.append((x.detach(), x.detach().clone()))
            else:
                made.untyped_storage().coming = True
                self.coming.append(weakref.ref(made.untyped_storage()))
        return made


class Cross(torch.autograd.Function):
    """A copy on the other device, whose gradient comes back."""

    @staticmethod
    def forward(ctx, x, card, to_gpu, at_once, how):
        ctx.card, ctx.back = card, (not to_gpu, True, {"dtype": x.dtype})
        return card.cross(x, to_gpu, at_once, **how)

    @staticmethod
    def backward(ctx, grad):
        return Cross.apply(grad, ctx.card, *ctx.back), None, None, None, None


class Law(TorchDispatchMode):
    """Every operation of a thread, also those of backward passes: refused, or done where its operands are."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs, tensors = dict(kwargs or {}), [*tensors_in(args), *tensors_in((kwargs or {}).values())]
        storages = [x.untyped_storage() for x in tensors]
        on = [getattr(storage, "on_gpu", False) for storage in storages]
        here = True in on
        if any(getattr(storage, "coming", False) for storage in storages):
            raise Refused(f"{op}: what comes from the GPU is read before it is there")
        if False in on and here or op.overloadpacket in WATCHED and here:
            self.judge(op, op.overloadpacket, args, tensors)
        asked = kwargs.get("device")
        if op.overloadpacket is aten._to_copy and here:     # torch's own casts name the device that it sees
            asked = kwargs["device"] = None
        if asked is not None and asked.type == "cuda":
            kwargs["device"] = CPU
        out = op(*args, **kwargs)
        there = here if asked is None else asked.type == "cuda"
        new = [storage for x in tensors_in((out,)) if (storage := x.untyped_storage()) not in storages]
        for storage in new:
            storage.on_gpu = there
        self.card.asked += there and bool(new or op.overloadpacket.__name__.endswith("_"))             # views cost nothing
        return out

    def judge(self, op, packet, args, tensors) -> None:
        if packet in ASKS or packet in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1]):
            self.card.waits.append(str(op))
        if packet in INDEXED:
            x, at, values = args[0], [i for i in args[1] if i is not None], [v for v in args[2:3] if isinstance(v, Tensor)]
            if not on_gpu(x) and any(map(on_gpu, at)) or values and on_gpu(x) != on_gpu(values[0]) and values[0].ndim:
                raise Refused(f"{op}: {told(tensors)}")
            if any(not on_gpu(i) for i in at):
                self.card.waits.append(f"{op} by an index of the CPU's")
            return
        numbers = torch.Tag.pointwise in op.tags or packet in NUMBERS
        if packet not in ACROSS and not all(on_gpu(x) or numbers and not x.ndim for x in tensors):
            raise Refused(f"{op}: expected all tensors to be on the same device, found {told(tensors)}")
        if packet in ACROSS and packet is aten.copy_ and len({on_gpu(x) for x in tensors}) > 1 and tensors[1].ndim:
            if not getattr(tensors[1].untyped_storage(), "pinned", False):
                self.card.wait(f"{op}, {list(tensors[1].shape)}")
        if packet in PRODUCTS and not tensors[0].is_floating_point() and not tensors[0].is_complex():
            raise Refused(f"{op} is not implemented for {tensors[0].dtype} on CUDA")
        if packet in FULL and tensors[0].dtype in (torch.half, torch.bfloat16):
            raise Refused(f"{op} is not implemented for {tensors[0].dtype} on CUDA")


def tensors_in(values) -> Iterator[Tensor]:
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from tensors_in(x)


def told(tensors: list[Tensor]) -> str:
    return ", ".join(f"{'cuda' if on_gpu(x) else 'cpu'} {list(x.shape)}" for x in tensors)


class Generator(plain.Generator):
    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.on_gpu = torch.device(device).type == "cuda"
        return self

    device = property(lambda self: CUDA if self.on_gpu else CPU)


class autocast(plain.autocast):
    """On the pretend GPU, that of the CPU: the numbers are there."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def same_device(name: str, generator, device) -> None:
    if generator is not None and generator.device.type != device.type:
        raise Refused(f"{name}: expected a '{device.type}' device type for generator but found '{generator.device.type}'")


def methods(card: Card) -> dict:
    """What of `Tensor` knows of devices."""
    def to(x, *args, **kwargs):
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        if "other" in kwargs:
            other = kwargs.pop("other")
            args = (other.device, other.dtype, *args)
        copy = kwargs.pop("copy", False)
        if len(args) > 1 and isinstance(args[-1], bool) and isinstance(args[-2], bool):
            *args, copy = args
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        how = {"dtype": dtype or x.dtype} | ({} if memory_format is None else {"memory_format": memory_format})
        if device is None or device.type == "meta" or where(x).type != "cpu" or (device.type == "cuda") == on_gpu(x):
            return plain.its_to(x, *([device] if device and device.type == "meta" else []), copy=copy, **how)
        return Cross.apply(x, card, device.type == "cuda", not non_blocking, how)

    def numpy(x, **kwargs):
        here(x, "numpy")
        return plain.its_numpy(x, **kwargs)

    def array(x, *args, **kwargs):
        here(x, "numpy")
        return plain.its___array__(x, *args, **kwargs)

    def here(x, what):
        if on_gpu(x):
            raise TypeError(f"{what}: can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if getattr(x.untyped_storage(), "coming", False):
            raise Refused(f"{what}: what comes from the GPU is read before it is there")

    def deepcopy(x, memo):
        return label(plain.its___deepcopy__(x, memo), on_gpu(x))

    def pin_memory(x):
        if on_gpu(x):
            raise Refused("cannot pin 'torch.cuda.FloatTensor', only dense CPU tensors can be pinned")
        made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)
        made.untyped_storage().pinned = True
        return made

    def new_tensor(x, data, *, dtype=None, device=None, **kwargs):
        return plain.its_new_tensor(x, data, dtype=dtype, **kwargs).clone().to(device or x.device) if not on_gpu(x) else \
            plain.tensor(data, dtype=dtype or x.dtype).to(device or x.device)

    def in_place(name):
        def checked(x, *args, **kwargs):
            same_device(name, kwargs.get("generator"), x.device)
            return getattr(plain, f"its_{name}")(x, *args, **kwargs)
        return checked

    return dict(to=to, cpu=lambda x, *a, **k: to(x, "cpu"), cuda=lambda x, *a, **k: to(x, "cuda"), numpy=numpy,
                __array__=array, __deepcopy__=deepcopy, pin_memory=pin_memory, new_tensor=new_tensor,
                is_pinned=lambda x, *a: getattr(x.untyped_storage(), "pinned", False),
                get_device=lambda x: 0 if on_gpu(x) else plain.its_get_device(x),
                device=property(lambda x: CUDA if on_gpu(x) else where(x)), is_cuda=property(on_gpu),
                is_cpu=property(lambda x: where(x).type == "cpu" and not on_gpu(x)),
                **{name: in_place(name) for name in RANDOM_IN_PLACE})


def makers() -> dict:
    """What of `torch` makes tensors out of nothing, and goes by generators."""
    def made(name):
        def to(data, *, dtype=None, device=None, **kwargs):
            x = getattr(plain, name)(data, dtype=dtype, **kwargs)
            return x if device is None else x.to(device)
        return to

    def drawn(name):
        def checked(*args, generator=None, **kwargs):
            first = args[0] if args and isinstance(args[0], Tensor) else None
            default = torch.get_default_device() if first is None else first.device
            same_device(name, generator, torch.device(kwargs.get("device") or default))
            return getattr(plain, name)(*args, **kwargs, **({} if generator is None else {"generator": generator}))
        return checked

    return dict(tensor=made("tensor"), as_tensor=made("as_tensor"), Generator=Generator, autocast=autocast,
                **{name: drawn(name) for name in RANDOM})


def cuda(card: Card, capability: tuple[int, int], memory: float) -> dict:
    """What of `torch.cuda` is asked."""
    stream = SimpleNamespace(device=CUDA, synchronize=card.wait, wait_stream=lambda it: None, wait_event=lambda it: None,
                             record_event=lambda it=None: None, query=lambda: True, cuda_stream=0, device_index=0)

    class Event:
        def __init__(self, **how):
            self.record = lambda stream=None: None
            self.wait, self.query, self.elapsed_time = self.record, lambda: True, lambda other: 1.0
            self.synchronize = lambda: card.wait("an event")

    about = SimpleNamespace(total_memory=memory, name="a pretend GPU", major=capability[0], minor=capability[1],
                            multi_processor_count=1)
    free = lambda device=None: (int(memory), int(memory))
    return dict(is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, _lazy_init=lambda: None,
                is_initialized=lambda: True, get_device_capability=lambda device=None: capability,
                get_device_properties=lambda device=None: about, get_device_name=lambda device=None: about.name,
                mem_get_info=free, memory_allocated=lambda device=None: 0, max_memory_allocated=lambda device=None: 0,
                reset_peak_memory_stats=lambda device=None: None, empty_cache=lambda: None,
                synchronize=lambda device=None: card.wait(), Stream=lambda *a, **k: stream, Event=Event,
                current_stream=lambda device=None: stream, stream=lambda stream: nullcontext(),
                device=lambda device: nullcontext(), is_bf16_supported=lambda *a: True,
                get_rng_state=lambda device=0: torch.get_rng_state(), get_rng_state_all=lambda: [torch.get_rng_state()],
                set_rng_state=lambda state, device=0: torch.set_rng_state(state))


@contextmanager
def gpu(capability: tuple[int, int] = (8, 0), memory: float = 80e9):
    """In here there is a GPU, for this thread and those that it starts; -> a `Card`."""
    card = Card()
    _device_constructors()                                  # `with torch.device` keeps what it finds at first: the real ones

    def run(thread):
        with Law(card):
            plain.run(thread)

    with ExitStack() as stack:
        for owner, changes in ((Tensor, methods(card)), (torch, makers()), (torch.cuda, cuda(card, capability, memory)),
                               (torch.amp, {"autocast": autocast}), (threading.Thread, {"run": run})):
            for name, change in changes.items():
                stack.enter_context(mock.patch.object(owner, name, change))
        stack.enter_context(Law(card))
        yield card
        card.wait("the end")
