"""Solution of exercise 9. The scale depends on u as well: it must not be detached."""

from torch import Tensor


def round_ste(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def fake_quant(w: Tensor, u: Tensor, bits: int) -> Tensor:
    m = u.sigmoid() * w.abs().amax(1, keepdim=True)
    scale = m / (2 ** (bits - 1) - 1)
    return scale * round_ste(w.clamp(-m, m) / scale)
