"""A safetensors file laid out in shared memory, so that saving is one copy and no serialising.

The trainer copies tensors into the image at a step boundary; the writer process, which never
touches CUDA or torch, writes the image's bytes to disk. The layout depends on names, types and
shapes only, so one buffer serves every checkpoint of a process's life.

Source: the safetensors format (8-byte little-endian header length, JSON header, tensors without
gaps); https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer_tui.engine.staging import backing

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def weights_once(model: nn.Module) -> dict[str, Tensor]:
    """The state dict in Hugging Face's layout with tied weights under their first name only."""
    seen: set[tuple[int, torch.Size]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor
    return kept


class TensorImage:
    """Shared memory that holds one safetensors file, and torch views into it.

    `fd` may be inherited by the writer. With `pin`, the buffer is page-locked so that copies
    from the GPU need not wait; that it could not be pinned costs speed, nothing else. `spill`: a
    folder on the disk that holds the image instead, where memory is short (`staging.py`).
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, pin: bool, spill: Path | None = None
    ) -> None:
        ordered = _ordered(tensors)
        header = _header(ordered)
        self.bytes = len(header) + sum(_size(tensor) for _, tensor in ordered)
        self.fd = backing(self.bytes, spill is None, spill or Path()).fd
        self._map = mmap.mmap(self.fd, self.bytes)
        self._map[: len(header)] = header
        buffer = torch.frombuffer(self._map, dtype=torch.uint8)
        self._views: dict[str, Tensor] = {}
        position = len(header)
        for name, tensor in ordered:
            part = buffer[position : position + _size(tensor)]
            self._views[name] = part.view(tensor.dtype).view(tensor.shape)
            position += _size(tensor)
        self.pinned = pin and spill is None and _pin(buffer)

    def capture(self, tensors: Mapping[str, Tensor]) -> None:
        """Queue copies of all tensors into the image, on the current stream when on a GPU.

        Raises:
            AssertionError: other tensors than the image was laid out for.
        """
        assert tensors.keys() == self._views.keys(), "the state changed its names"
        for name, view in self._views.items():
            view.copy_(tensors[name].detach(), non_blocking=True)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """What an image of these tensors takes, but for its header."""
    return sum(_size(tensor) for tensor in tensors.values())


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether no tensor holds a NaN or an infinity: a bool scalar on the device, not read here."""
    floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floats:
        return torch.ones((), dtype=torch.bool)
    # A NaN or an infinity makes the extreme so; one pass, no temporary of the tensor's size.
    extremes = [torch.stack(torch.aminmax(t)).float().abs().amax() for t in floats]
    return torch.isfinite(torch.stack(extremes)).all()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _ordered(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    # Wide types first keeps every tensor aligned without gaps, as the format wants.
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in ordered:
        end = position + _size(tensor)
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pin(buffer: Tensor) -> bool:
    try:
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        status = runtime.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)
    except RuntimeError:
        return False
    return int(status) == 0
