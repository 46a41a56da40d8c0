"""Makes batches pytrees of torch, so that functions for the tensors of a tree find those of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["register"]

T = TypeVar("T")


def register(
    cls: type[T],
    flatten: Callable[[T], tuple[list[Any], Any]],
    unflatten: Callable[[Iterable[Any], Any], T],
    keys: Callable[[Any, T], list[Any]],
) -> None:
    """Make a class a node of torch's pytrees, in Python and in C++. torch must be installed.

    Args:
        cls: The class.
        flatten: From an object to its children and a context.
        unflatten: From children and a context to an object.
        keys: From torch's pytree module and an object to the path of each child, in the order of `flatten`.
    """
    from torch.utils import _pytree

    def with_keys(node: T) -> tuple[list[tuple[Any, Any]], Any]:
        children, context = flatten(node)
        return list(zip(keys(_pytree, node), children, strict=True)), context

    _pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"shardstream.{cls.__name__}",
        flatten_with_keys_fn=with_keys,
    )
