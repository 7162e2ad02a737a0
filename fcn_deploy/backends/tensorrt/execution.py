"""Hold an engine's execution context; set profile, shapes and addresses only when they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fcn_deploy.backends.tensorrt.api import TensorRT
from fcn_deploy.backends.tensorrt.messages import Message
from fcn_deploy.backends.tensorrt.surface import ExecutionContext
from fcn_deploy.errors import ExecutionError, ShapeError

__all__ = ["BoundContext", "Shapes"]

Shapes = dict[str, tuple[int, ...]]


class BoundContext:
    """Keeps what an execution context was told. One thread at a time, with the device current.

    Attributes:
        settled: whether the shapes have been run since they were set: TensorRT puts work off until
            then, which must not end up in a CUDA graph.
    """

    def __init__(
        self,
        context: ExecutionContext,
        library: TensorRT,
        *,
        outputs: tuple[str, ...],
        name: str,
    ) -> None:
        self._context = context
        self._library = library
        self._output_names = outputs
        self._name = name
        self._profile = 0
        self._shapes: Shapes = {}
        self._output_shapes: Shapes = {}
        self._addresses: dict[str, int] = {}
        self.settled = False

    def set_shapes(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int
    ) -> Shapes:
        """Set the inputs' shapes; give the outputs'.

        Args:
            profile: that takes these shapes.
            stream: that the context runs in: changing the profile may enqueue a copy.

        Raises:
            ShapeError: TensorRT refused a shape.
            ExecutionError: TensorRT refused the profile, or cannot tell an output's shape.
        """
        if profile != self._profile:
            with self._library.capture() as messages:
                if not self._context.set_optimization_profile_async(profile, stream):
                    raise ExecutionError(
                        f"'{self._name}' cannot change to profile {profile}: {_said(messages)}"
                    )
            self._profile = profile
            self._shapes = {}  # the library forgets them with the profile
            self._addresses = {}  # whether it keeps these is not documented
        if self._shapes == shapes:
            return self._output_shapes
        self._shapes, self.settled = {}, False
        with self._library.capture() as messages:
            for name, shape in shapes.items():
                if not self._context.set_input_shape(name, shape):
                    raise ShapeError(
                        f"'{self._name}' refuses {list(shape)} for input '{name}' in profile "
                        f"{profile}: {_said(messages)}"
                    )
            missing = self._context.infer_shapes()
            if missing:
                raise ExecutionError(
                    f"'{self._name}' cannot tell its outputs' shapes without {missing}: "
                    f"{_said(messages)}"
                )
        found = {
            name: tuple(int(size) for size in self._context.get_tensor_shape(name))
            for name in self._output_names
        }
        for name, shape in found.items():
            if any(size < 0 for size in shape):
                raise ExecutionError(
                    f"the shape of output '{name}' of '{self._name}' depends on the input's "
                    f"values: {list(shape)}.",
                    hint="Export the network with outputs whose shape follows from the input's.",
                )
        self._shapes, self._output_shapes = dict(shapes), found
        return found

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Say where inputs are read and outputs written from the next `enqueue` on.

        Raises:
            ExecutionError: TensorRT refused one.
        """
        for name, address in addresses.items():
            if self._addresses.get(name) == address:
                continue
            if not self._context.set_tensor_address(name, address):
                raise ExecutionError(f"'{self._name}' refuses the address of '{name}'.")
            self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        """Enqueue one run.

        Raises:
            ExecutionError: TensorRT refused; its log is in the message.
        """
        with self._library.capture() as messages:
            if not self._context.execute_async_v3(stream):
                shapes = {name: list(shape) for name, shape in self._shapes.items()}
                raise ExecutionError(
                    f"{self._library.title} failed in '{self._name}' with input {shapes}: "
                    f"{_said(messages)}"
                )
        self.settled = True


def _said(messages: Sequence[Message]) -> str:
    return " ".join(message.text for message in messages[-3:])[:500] or "it gave no reason."
