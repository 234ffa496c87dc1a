"""`optimizer.state`: torch's dict of each parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from functorch_optim.stateful.parameter import Parameter

if TYPE_CHECKING:
    from functorch_optim.stateful.memory.by_leaf import LeafMemory


class StateView(Mapping[Parameter, Mapping[str, Any]]):
    """The state of each parameter, to read. `load_state_dict` writes."""

    def __init__(self, memory: LeafMemory):
        self._memory = memory

    def __getitem__(self, parameter: Parameter) -> Mapping[str, Any]:
        record = self._memory.records.get(parameter)
        return MappingProxyType({} if record is None else record.torch_view(self._memory.rule))

    def get(self, parameter: Parameter, default: Any = None) -> Any:
        """The dict of a parameter that has one, else the default."""
        if parameter not in self:
            return default
        return self[parameter]

    def __contains__(self, parameter: object) -> bool:
        record = self._memory.records.get(parameter)  # type: ignore[call-overload]  # any key may be asked
        return record is not None and (bool(record.buffers) or self._memory.rule.torch.has_step)

    def __iter__(self) -> Iterator[Parameter]:
        return iter([p for p in self._memory.records if p in self])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return repr({p: dict(self[p]) for p in self})
