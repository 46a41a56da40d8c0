"""A function from fields to outputs, as a DALI pipeline that asks a source for its batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from shardstream.dali.inputs import ROLES, Input, kind_of
from shardstream.dali.pictures import PLACE, pipeline_of
from shardstream.decode.dali import NAMED, Function
from shardstream.decode.modes import Decode, Modes, frozen, modes
from shardstream.decode.picture_batch import Picture
from shardstream.errors import OptionError, require
from shardstream.format.kinds import extension

__all__ = ["Graph", "OnError", "reason"]

OnError = Literal["raise", "skip", "mask"]


class Graph:
    """A function from fields to outputs, as a DALI pipeline that asks a source for its batches.

    Args:
        function: A name in `NAMED`, a function, or modes as `decode` of a StreamingDataset takes them. The
            parameters of a function are names of fields, with _ for dots and dashes. There are four more:
            "image" and "audio" are the field of that kind which a sample has; "random" is float32 [RANDOM]
            with numbers in [0, 1) for each sample; "device" is "mixed" or "cpu", for decoders. Samples may
            lack the field of a parameter with a default. The function returns a dict of outputs. If it is
            decorated with `pipeline_def`, it returns a tuple.
        kinds: The codec of each field of the dataset.
        decode: How the dataset decodes its fields. Graphs get fields that are "stored" as arrays.
        outputs: The names of the outputs of a tuple. None: the names of the parameters.
        gpu: The number of the GPU; None for the CPU.

    Attributes:
        inputs: What each parameter gets.
        random: Whether the function has the parameter "random".
        modes: The modes that the graph is made of, or None.

    Raises:
        OptionError: A parameter is no field, or there is no parameter that is a field.
    """

    def __init__(
        self,
        function: Any,
        kinds: Mapping[str, str],
        decode: Decode,
        outputs: Sequence[str] | None,
        gpu: int | None,
    ) -> None:
        require("nvidia.dali", "dali")
        self._gpu = gpu
        self.random = self._device = self._decorated = False
        self.modes: Modes | None = None
        if isinstance(function, str):
            if function not in NAMED:
                raise OptionError(f"pipeline={function!r}; choose {', '.join(NAMED)}, or give a function")
            function = NAMED[function]()
        if callable(function):
            self._function = function
            self._decorated = getattr(function, "_is_pipeline_def", False)
            self.inputs = tuple(self._parameters(function, kinds, decode))
            self.outputs = [one.name for one in self.inputs] if outputs is None else list(outputs)
            if not self.inputs:
                raise OptionError(f"the pipeline has no parameter that is a field: {sorted(kinds)}")
            return
        try:
            self.modes = modes(frozen(function), kinds)
        except OptionError as error:
            told = str(error).replace("decode", "pipeline")
            raise OptionError(f"{told}; or give a name or a function of fields") from error
        if not self.modes.pictures:
            raise OptionError(f"pipeline={function!r} names no image that DALI is to decode")
        self._function = pipeline_of(self.modes.pictures)
        self._device = True
        self.inputs = tuple(
            Input(
                f"image{number}", picture.fields, "image", role=True,
                upright=picture.how.upright, max_pixels=picture.how.max_pixels,
            )
            for number, picture in enumerate(self.modes.pictures) if not picture.mask
        )  # fmt: skip
        self.outputs = [picture.name for picture in self.modes.pictures if not picture.mask]

    def _parameters(self, function: Function, kinds: Mapping[str, str], decode: Decode) -> Any:
        modes_of = decode if isinstance(decode, Mapping) else {}
        stored = {name for name, mode in modes_of.items() if mode == "stored"}
        options: Mapping[str, Any] = getattr(function, "images", {})
        for name, parameter in inspect.signature(inspect.unwrap(function)).parameters.items():
            fields, role = _fields(name, kinds)
            optional = parameter.default is not parameter.empty
            if fields:
                kind = "stored" if fields[0] in stored else kind_of(fields[0], kinds[fields[0]])
                more = options if kind == "image" else {}
                yield Input(name, fields, kind, role, parameter.default, optional, **more)
            elif name == "random":
                self.random = True
            elif name == "device":
                self._device = True
            elif not optional:
                raise OptionError(f"the pipeline needs {name!r}; the dataset's fields are {sorted(kinds)}")

    @property
    def masks(self) -> list[Picture]:
        """The masks that come beside the outputs."""
        return [picture for picture in (self.modes.pictures if self.modes else ()) if picture.mask]

    @property
    def taken(self) -> set[str]:
        """The fields that do not come beside the outputs."""
        found = {name for one in self.inputs for name in one.fields}
        return found | (set(self.modes.taken) if self.modes else set())

    def on_error(self, asked: OnError) -> OnError:
        """What becomes of damaged samples: what the modes say, if the loader's option says nothing."""
        assert self.modes is not None
        said = {picture.how.on_error for picture in self.modes.pictures}
        if asked != "raise" or said == {"raise"}:
            return asked
        if len(said) > 1:
            raise OptionError("with DALI a sample is masked as a whole: give all modes on_error='mask'")
        return "mask"

    def build(self, source: Callable[[int], list[Any]], **options: Any) -> Any:
        """The built pipeline.

        Args:
            source: From the number of a batch to its arrays: one for each input, then the places of images or
                the random numbers.
            options: Of `nvidia.dali.Pipeline`.

        Raises:
            OptionError: The function does not return a dict, or another number of outputs than there are
                names.
        """
        from nvidia.dali import Pipeline

        # Only with this executor the memory of outputs stays valid as long as a tensor uses it.
        options |= {"device_id": self._gpu, "exec_dynamic": True}
        if self._decorated and not options.get("enable_checkpointing"):
            pipeline = self._function(**self._given(source), **options)
        else:
            # With checkpoints, all nodes must be made inside of the pipeline. So call the undecorated
            # function, without the other arguments of its decorator.
            pipeline = Pipeline(**options)
            with pipeline:
                made = inspect.unwrap(self._function)(**self._given(source))
                if not self._decorated:
                    if not isinstance(made, Mapping) or not made:
                        kind = type(made).__name__
                        raise OptionError(f"the pipeline's function gave a {kind}, not a dict of outputs")
                    self.outputs, made = list(made), tuple(made.values())
                pipeline.set_outputs(*(made if isinstance(made, tuple) else (made,)))
        pipeline.build()
        if len(self.outputs) != pipeline.num_outputs:
            raise OptionError(
                f"the pipeline has {pipeline.num_outputs} outputs: name them, as in outputs=['jpg', 'cls']"
            )
        return pipeline

    def _given(self, source: Callable[[int], list[Any]]) -> dict[str, Any]:
        """The arguments of the function: a node for each parameter."""
        from nvidia.dali import fn, types

        forms = {"number": (types.INT64, 0, ""), "stored": (types.UINT16, 3, "HWC")}
        columns = [(one.name, *forms.get(one.kind, (types.UINT8, 1, ""))) for one in self.inputs]
        if self.modes is not None:
            columns += [(PLACE + name, types.INT32, 1, "") for name, *_ in columns]
        if self.random:
            columns.append(("random", types.FLOAT, 1, ""))
        names, dtypes, dims, layouts = map(list, zip(*columns, strict=True))
        nodes = fn.external_source(source, len(names), dtype=dtypes, ndim=dims, layout=layouts, no_copy=True)
        given: dict[str, Any] = dict(zip(names, nodes, strict=True))
        if self._device:
            given["device"] = "cpu" if self._gpu is None else "mixed"
        return given

    def names(self) -> list[str]:
        """The names of the outputs in a batch. One that is named like a parameter gets its field's name."""
        named = {one.name: one.fields[0] for one in self.inputs if not one.role}
        return [named.get(name, name) for name in self.outputs]

    def kept(self) -> list[bool]:
        """Of each output whether it is a number that was given, which damage elsewhere does not touch."""
        numbers = {one.name for one in self.inputs if one.kind == "number"}
        return [name in numbers for name in self.outputs]

    def aliases(self, beside: Sequence[str]) -> Mapping[str, str]:
        """Names that outputs had in 0.1: that of the field, if it is "image" or "audio" here."""
        if self.modes is not None:
            return self.modes.aliases
        names = {*self.names(), *beside}
        return {
            field: one.name
            for one in self.inputs
            if one.role and one.name in names
            for field in one.fields
            if field not in names
        }


def _fields(name: str, kinds: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """The fields that a parameter may get, and whether it stands for a kind."""
    for field in kinds:
        if name == field or name == field.replace(".", "_").replace("-", "_"):
            return (field,), False
    endings = ROLES.get(name, ())
    found = [field for field, codec in kinds.items() if extension(codec or field) in endings]
    plain = [field for field in found if "." not in field]
    return tuple(plain or found[:1]), True


def reason(error: Exception) -> str:
    """The message of an error of DALI, without its stack."""
    text = str(error).rpartition("encountered:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "pipeline object is no longer valid" not in line]
    return " ".join(told[:2]) or type(error).__name__
