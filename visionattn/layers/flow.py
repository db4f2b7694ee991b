# SPDX-License-Identifier: Apache-2.0
"""Flow attention: attention as a flow network, of linear cost."""

from torch import Tensor

from visionattn.kernels import flow_attention

from .linear_mixer import LinearMixer


class FlowAttention(LinearMixer):
    """Every pixel attends to all pixels; keys compete for a conserved flow, at a cost linear in the pixels.

    Nothing depends on the size of the map.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        eps: Added to capacities and flows.
        qkv_bias: Whether the qkv projection has a bias.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `eps` is negative.

    Paper: Flowformer: Linearizing Transformers with Conservation Flows, arXiv 2202.06258.
    """

    cost = "O(N)"

    def __init__(
        self, dim: int, num_heads: int, eps: float = 1e-6, qkv_bias: bool = True, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, None, proj_drop)
        if eps < 0:
            raise ValueError(f"eps={eps} must not be negative")
        self.eps = eps

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes a map `(B, H, W, C)`, any H, W >= 1, or tokens `(B, N, C)`, whose `size` changes nothing."""
        q, k, v = self.project_in(x)
        return self.project_out(flow_attention(q, k, v, eps=self.eps, flow_eps=self.eps))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the flows and of the two products on one map."""
        head_dim = self.dim // self.num_heads
        return height * width * self.dim * (2 * head_dim + 6)
