"""Exercise 3: the error of the outputs, without the inputs.

A layer computes Y = X W^T for tokens X [tokens, inputs]. Rounding changes W [outputs, inputs] by D, and the
outputs by X D^T. All that one needs of the tokens to know how much that is, is one matrix:

    |X D^T|^2 = tr (D H D^T)       H = sum over the tokens of x x^T

Lesson: examples/03_weight_error_is_not_output_error.py    Page: docs/methods/gptq.md    Grade: pytest -m ex03
"""

from torch import Tensor


def hessian(X: Tensor) -> Tensor:
    """Return H [inputs, inputs] of tokens X [tokens, inputs]; H of two batches is the sum of theirs."""
    raise NotImplementedError


def output_error(D: Tensor, H: Tensor) -> Tensor:
    """Return |X D^T|^2, one number, for the errors D [outputs, inputs] of a weight."""
    raise NotImplementedError
