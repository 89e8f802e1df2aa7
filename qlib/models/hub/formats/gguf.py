"""A GGUF file: its settings, and its tensors dequantized one by one.

The `gguf` package reads the container and undoes the block formats (Q4_1, Q8_0, Q4_K and the others).
`gguf_config` and `gguf_tensors` make a Hugging Face model of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlib.errors import ModelError, require_extra
from qlib.models.config_values import (
    ConfigValues,
)


class GgufFile:
    """An open GGUF file.

    Parameters
    ----------
    path : str or Path
        The file; its tensors stay on disk until they are read.

    Attributes
    ----------
    metadata : dict of str to value
        Settings by key, for example ``"llama.block_count"``; arrays are lists.
    tensors : dict
        The `gguf` package's tensor records, by name.
    values : ConfigValues
        The settings again, read with their types checked.

    Raises
    ------
    ModelError
        The file is missing, truncated or of another format.
    MissingExtraError
        The `gguf` package is not installed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        package = require_extra("gguf", "gguf", f"Reading {self.path.name}")
        try:
            reader = package.GGUFReader(self.path)
            self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        except Exception as error:  # a cut file ends in numpy's errors, of many kinds
            raise ModelError(
                f"{self.path} cannot be read, is damaged or is not a GGUF file "
                f"({type(error).__name__}: {error}). Fetch or copy it again."
            ) from error
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.values = ConfigValues(self.metadata, self.path)

    def setting(self, key: str) -> Any:
        """Return one setting; a missing one is a ModelError that names it."""
        if key not in self.metadata:
            raise ModelError(f"{self.path} lacks the setting {key!r}. Convert the model anew with llama.cpp.")
        return self.metadata[key]

    def rows(self, name: str) -> int:
        """Return the number of rows of a matrix; a missing one is a ModelError that names it."""
        if name not in self.tensors:
            raise ModelError(f"{self.path} lacks the tensor {name!r}. Fetch or copy it again.")
        return int(self.tensors[name].shape[-1])  # this format states the innermost axis first

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that holds a tensor as stored; for block formats, a type finer than they are."""
        kind = self.tensors[name].tensor_type.name
        return {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}.get(kind, torch.float16)

    def read(self, name: str) -> Tensor:
        """Return one tensor, dequantized to float32."""
        record = self.tensors[name]
        quants = require_extra("gguf.quants", "gguf", f"Reading {self.path.name}")
        try:
            values = quants.dequantize(record.data, record.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: {name} has the block format {record.tensor_type.name}, which the installed "
                "gguf package cannot undo. Use another quantization of the model."
            ) from error
        return torch.from_numpy(np.array(values, np.float32))  # a copy: the mapped file is read-only
